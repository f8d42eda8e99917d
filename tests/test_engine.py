"""Finding, installing, starting and stopping Ollama: with a shell script in its place, and once with the real one."""

import functools
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import zstandard

from kit import build, engine, models
from kit.config import PROFILES, KitError, load_profile
from kit.download import Unreachable

# What stands in for the binary: says its version, and serves it.
FAKE = f"""#!{sys.executable}
import http.server, os, sys
if sys.argv[1] == "--version":
    sys.exit(print("Warning: client version is VERSION"))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"version": "VERSION"}}')
host, port = os.environ["OLLAMA_HOST"].split(":")
print("serving", os.environ["OLLAMA_MODELS"], os.environ["OLLAMA_NO_CLOUD"], flush=True)
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


def fake_binary(path: Path, version: str = "0.32.15") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FAKE.replace("VERSION", version))
    path.chmod(0o755)
    return path


@pytest.fixture
def profile(tmp_path, monkeypatch, free_port):
    """A home and a PATH of its own, and an OLLAMA_HOST where nothing answers."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return replace(PROFILES["ci"], home=tmp_path / "home", ollama_host=f"127.0.0.1:{free_port}")


@pytest.fixture
def pins(monkeypatch):
    """The engine's section of sources.toml, for a test to change; no address in it leads anywhere."""
    pins = engine.sources()["engine"]
    for pin in pins["archives"].values():
        pin["url"] = "http://127.0.0.1:9/none"
    monkeypatch.setattr(engine, "sources", lambda: {"engine": pins})
    return pins


def archive_of(folder: Path, files: dict[str, bytes]) -> str:
    """Write `ollama.tar.zst` with `files` into `folder`; its SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    packed = zstandard.ZstdCompressor().compress(buffer.getvalue())
    folder.mkdir(exist_ok=True)
    (folder / "ollama.tar.zst").write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


@pytest.fixture
def official(tmp_path, pins, monkeypatch):
    """A download page of our own: a function that puts an archive of `files` there and pins it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            served.append(self.path)

    served = []
    handler = functools.partial(Quiet, directory=tmp_path / "page")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def put(files: dict[str, bytes]) -> list[str]:
        sha256 = archive_of(tmp_path / "page", files)
        url = f"http://127.0.0.1:{server.server_port}/ollama.tar.zst"
        for pin in pins["archives"].values():
            pin.update(url=url, sha256=sha256)
        return served

    yield put
    server.shutdown()
    server.server_close()


OFFICIAL = {"bin/ollama": FAKE.replace("VERSION", "0.32.15").encode(), f"lib/ollama/{engine.AMX_LIBRARY}": b"elf"}


def test_installs_the_official_archive_and_finds_it_again(profile, official):
    served = official(OFFICIAL)
    made = engine.install(profile)
    assert made == engine.Engine("0.32.15", "archive", profile.home / "engine" / "bin" / "ollama")
    assert engine.install(profile) == engine.locate(profile) == made
    assert len(served) == 1
    assert sorted(p.name for p in profile.home.iterdir()) == ["engine", "engine.lock"]
    with engine.running(profile) as server:
        assert engine.answering_version(server.url) == "0.32.15"
    assert f"serving {profile.home / 'models'} 1" in (profile.home / "logs" / "ollama.log").read_text()


@pytest.mark.parametrize("flags, kept", [({"avx2", "amx_tile"}, False), ({"avx2"}, True)])
def test_the_library_that_crashes_with_amx_is_removed(profile, official, monkeypatch, flags, kept):
    official(OFFICIAL)
    monkeypatch.setattr(engine, "cpu_flags", lambda: flags)
    folder = engine.install(profile).path.parent.parent
    assert (folder / "lib" / "ollama" / engine.AMX_LIBRARY).exists() == kept


def test_an_archive_with_a_wrong_sum_stops_the_set_up(profile, official, pins):
    official(OFFICIAL)
    for pin in pins["archives"].values():
        pin["sha256"] = "0" * 64
    with pytest.raises(KitError, match=f"and not {'0' * 64}"):
        engine.install(profile)
    assert engine.locate(profile) is None


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python, before 3.11.4, looks at no names")
def test_an_archive_that_reaches_outside_is_refused(profile, official):
    official({"../../outside": b"x"})
    with pytest.raises(tarfile.OutsideDestinationError):
        engine.install(profile)
    assert not list(profile.home.glob("**/outside"))


def test_builds_where_the_archive_cannot_be_reached(profile, pins, monkeypatch):
    def build_engine(pins, version, work, logs):
        fake_binary(work / "done" / "bin" / "ollama", version)
        return work / "done"

    monkeypatch.setattr(engine, "build_engine", build_engine)
    stale = profile.home / "engine-killed"
    stale.mkdir(parents=True)
    assert engine.install(profile).source == "registries"
    assert not stale.exists()


def test_a_failed_build_leaves_nothing_half_made(profile, pins, monkeypatch):
    def build_engine(pins, version, work, logs):
        fake_binary(work / "done" / "bin" / "ollama")
        raise KitError("the compiler failed; see the log")

    monkeypatch.setattr(engine, "build_engine", build_engine)
    with pytest.raises(KitError, match="compiler failed"):
        engine.install(profile)
    assert [p.name for p in profile.home.iterdir()] == ["engine.lock"]


def test_two_set_ups_at_once_install_once(profile, official, monkeypatch):
    served = official(OFFICIAL)
    fetch = engine.fetch
    monkeypatch.setattr(engine, "fetch", lambda *args: (time.sleep(0.3), fetch(*args))[1])
    found = []
    threads = [threading.Thread(target=lambda: found.append(engine.install(profile))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == len(served) == 1


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_than_on_linux_ollama_must_be_there(profile, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(KitError, match=r"install it from https://ollama\.com/download"):
        engine.install(profile)


def test_no_engine_at_all(profile):
    with pytest.raises(KitError, match="run `kit setup`"), engine.running(profile):
        pass


def test_uses_the_one_on_path_unless_it_is_too_old(profile, tmp_path):
    path = fake_binary(tmp_path / "bin" / "ollama", "0.33.1")
    assert engine.locate(profile) == engine.Engine("0.33.1", "PATH", path)
    fake_binary(path, "0.12.0")
    assert engine.locate(profile) is None


def test_uses_one_that_answers_and_leaves_it_running(profile, scripted):
    server = scripted({"json": {"version": "0.32.0"}})
    at_server = replace(profile, ollama_host=server.url)
    with engine.running(at_server) as found:
        assert found == engine.Engine("0.32.0", "server", None, server.url)
    assert engine.answering_version(server.url) == "0.32.0"


@pytest.mark.parametrize("version", ["0.12.9", "0.0.0", "a fork"])
def test_one_that_answers_and_is_too_old(profile, scripted, version):
    server = scripted({"json": {"version": version}})
    with pytest.raises(KitError, match=rf"{server.url} is version {version} and the kit needs 0\.32 or newer"):
        engine.locate(replace(profile, ollama_host=server.url))


@pytest.mark.parametrize("nonsense", [{"text": "<html>"}, {"json": []}, {"json": {"version": 3}}, {"status": 500}])
def test_another_program_on_the_port_is_not_taken_for_ollama(profile, tmp_path, scripted, nonsense):
    fake_binary(tmp_path / "bin" / "ollama")
    other = scripted(nonsense)
    taken = replace(profile, ollama_host=other.url.removeprefix("http://"))
    with engine.running(taken, keep=True) as server:
        assert server.source == "PATH"
        assert server.url != other.url
    assert engine.stop(taken)


def test_a_host_elsewhere_where_nothing_answers(profile, monkeypatch):
    monkeypatch.setattr(engine, "answering_version", lambda url: None)
    with pytest.raises(KitError, match="OLLAMA_HOST names http://gpu-box:11434, where no Ollama answers"):
        engine.locate(replace(profile, ollama_host="gpu-box"))


@pytest.mark.parametrize(
    "host, url",
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8000", "http://127.0.0.1:8000"),
        ("box:8000", "http://box:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("https://box/ollama/", "https://box:443/ollama"),
    ],
)
def test_reads_ollama_host_as_ollama_does(host, url):
    assert engine._address(host).geturl() == url


@pytest.mark.parametrize("host", ["box:port", "ftp://box"])
def test_an_ollama_host_that_is_no_address(host):
    with pytest.raises(KitError, match=f"OLLAMA_HOST is '{host}'"):
        engine._address(host)


def test_a_one_off_server_is_gone_afterwards_also_after_an_error(profile, tmp_path):
    fake_binary(tmp_path / "bin" / "ollama")
    with pytest.raises(ZeroDivisionError), engine.running(profile) as server:
        url = server.url
        assert engine.answering_version(url)
        raise ZeroDivisionError
    assert engine.answering_version(url) is None
    assert engine.stop(profile) is False


def test_a_kept_server_is_found_again_until_it_is_stopped(profile, tmp_path):
    fake_binary(tmp_path / "bin" / "ollama")
    with engine.running(profile, keep=True) as first:
        assert first.url == f"http://{profile.ollama_host}"
    elsewhere = replace(profile, ollama_host="127.0.0.1:1")
    with engine.running(elsewhere) as second:
        assert (second.url, second.source) == (first.url, "server")
    assert engine.stop(elsewhere) is True
    assert engine.answering_version(first.url) is None


def test_a_process_that_has_the_number_of_one_that_is_gone_is_left_alone(profile):
    record = profile.home / "server.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": os.getpid(), "started": 1.0, "url": "http://127.0.0.1:9"}))
    assert engine.stop(profile) is False and not record.exists()


def test_two_that_begin_at_once_share_one_server(profile, tmp_path):
    fake_binary(tmp_path / "bin" / "ollama")
    found = []

    def begin():
        with engine.running(profile, keep=True) as server:
            found.append(server.url)

    kernels = [threading.Thread(target=begin) for _ in range(3)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert len(psutil.Process().children()) == 1
    assert engine.stop(profile) is True and engine.answering_version(found[0]) is None


def test_a_server_of_ours_that_died_comes_back_on_its_address(profile, tmp_path):
    fake_binary(profile.home / "engine" / "bin" / "ollama")
    (profile.home / "engine" / "engine.json").write_text(json.dumps({"version": "0.32.15", "source": "archive"}))
    with engine.running(profile) as server:
        assert not engine.revive(server, profile), "it answers, so it is not to blame"
        (dead,) = psutil.Process().children()
        dead.kill()
        dead.wait()
        assert engine.revive(server, profile)
        assert engine.answering_version(server.url) == "0.32.15"
    assert psutil.Process().children() == [], "it ends with the block, as the first would have"


def test_a_server_that_dies_at_once_names_its_log(profile, tmp_path):
    binary = tmp_path / "bin" / "ollama"
    fake_binary(binary).write_text(
        "#!/bin/sh\n[ $1 = serve ] && echo 'no such device' && exit 1\necho version is 0.32.1\n"
    )
    with pytest.raises(KitError, match=r"ollama\.log ends with: no such device"), engine.running(profile):
        pass


def test_a_server_that_never_comes_up_is_given_up(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "START_SECONDS", 0.5)
    binary = tmp_path / "bin" / "ollama"
    fake_binary(binary).write_text("#!/bin/sh\n[ $1 = serve ] && exec sleep 60\necho version is 0.32.1\n")
    with pytest.raises(KitError, match="did not come up"), engine.running(profile):
        pass
    assert not [p for p in psutil.Process().children(recursive=True) if "sleep" in p.name()]


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from kit import engine
from kit.config import PROFILES
profile = replace(PROFILES["ci"], home=Path(sys.argv[1]), ollama_host="127.0.0.1:1")
with engine.running(profile) as server:
    print(server.url, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends it on Linux only")
def test_a_one_off_server_ends_when_we_are_killed(profile, tmp_path):
    fake_binary(tmp_path / "bin" / "ollama")
    ours = subprocess.Popen([sys.executable, "-c", KILLED, profile.home], stdout=subprocess.PIPE, text=True)
    url = ours.stdout.readline().strip()
    assert engine.answering_version(url)
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    deadline = time.monotonic() + 5
    while engine.answering_version(url) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.answering_version(url) is None


# --- building


def test_missing_tools_are_named_together(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda tool: None if tool in ("go", "ninja") else tool)
    with pytest.raises(KitError, match=r"without Go \(go\), Ninja \(ninja\); install what is missing"):
        build.build_engine({}, "1", tmp_path, tmp_path)


def test_each_instruction_set_is_used_only_where_the_cpu_has_it():
    cascade_lake = {"sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx512_vnni", "amx_tile", "amx_int8"}
    cascade_lake |= {f"avx512{part}" for part in ("f", "cd", "bw", "dq", "vl")}
    options = build.cmake_options(cascade_lake, "x86_64")
    on = {
        o.removeprefix("-DGGML_").removesuffix("=ON") for o in options if o.startswith("-DGGML_") and o.endswith("=ON")
    }
    assert on == {"SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VNNI"}
    assert "-DGGML_NATIVE=OFF" in options
    assert not any(o.endswith("=ON") for o in build.cmake_options(set(), "x86_64"))
    assert not any("AVX" in o for o in build.cmake_options({"asimd"}, "aarch64"))


def test_a_build_step_that_fails_names_its_log(tmp_path):
    log = tmp_path / "build.log"
    with pytest.raises(KitError, match=rf"`sh -c` ended with exit status 3.*{log}"):
        build._run(["sh", "-c", "echo no such header; exit 3"], log, lambda: None)
    assert "no such header" in log.read_text()


def test_only_llama_cpp_is_unpacked(tmp_path):
    with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as tar:
        for name in ("wrapper-1/setup.py", "wrapper-1/llama.cpp/CMakeLists.txt"):
            tar.addfile(tarfile.TarInfo(name))
    source = build._unpack(tmp_path / "sdist.tar.gz", tmp_path / "to")
    assert [p.name for p in source.iterdir()] == ["CMakeLists.txt"]
    assert [p.name for p in source.parent.iterdir()] == ["llama.cpp"]


def test_a_build_without_a_package_index(tmp_path, monkeypatch):
    def nothing(*args):
        raise Unreachable("The Python package index does not answer.")

    monkeypatch.setattr(build.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(build, "registry_file", nothing)
    with pytest.raises(KitError, match="index does not answer"):
        build.build_engine(engine.sources()["engine"]["build"], "1", tmp_path, tmp_path / "logs")


# --- the real one


@pytest.mark.ollama
def test_the_real_server_starts_loads_and_leaves_no_process():
    profile = load_profile("ci")
    models.setup(profile)
    before = set(psutil.Process().children(recursive=True))
    with engine.running(replace(profile, ollama_host="127.0.0.1:1")) as server:
        assert models.effective_context(server.url, profile.model_name("primary")) == 8192
        started = set(psutil.Process().children(recursive=True)) - before
        assert {"ollama", "llama-server"} <= {process.name() for process in started}
    assert engine.answering_version(server.url) is None
    assert not [process for process in started if process.is_running()]
    assert os.path.isfile(profile.home / "logs" / "ollama.log")
