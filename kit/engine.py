"""Find, install, start and stop Ollama.

Three ways to an engine, in this order: one that is here already, the official release archive, and a
build from the package registries. Only the first is open on macOS and Windows.
"""

import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx
import psutil
from filelock import FileLock
from packaging.version import InvalidVersion, Version

from kit.build import build_engine, cpu_flags
from kit.config import MODELFILES, KitError, Profile, environment, replace_text
from kit.download import Unreachable, fetch, full_disk_said, unpack

DEFAULT_PORT = 11434
START_SECONDS = 30
STOP_SECONDS = 10
# Dies in a prefill on CPUs with AMX (ollama issue 17006); without it the next best library is used.
AMX_LIBRARY = "libggml-cpu-sapphirerapids.so"
# Starts the program given as arguments, and has the kernel end it when the process that asked for it is gone.
TIED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Engine:
    """An Ollama: `source` is `server`, `PATH`, `archive` or `registries`; `url` is empty while it is not running."""

    version: str
    source: str
    path: Path | None = None  # of the binary; None where only a server is known
    url: str = ""
    processes: list[subprocess.Popen] = field(default_factory=list, compare=False, repr=False)  # that we have started


def sources() -> dict:
    """`modelfiles/sources.toml`: where engine and weights come from, with their sums."""
    return tomllib.loads((MODELFILES / "sources.toml").read_text(encoding="utf-8"))


def locate(profile: Profile) -> Engine | None:
    """The Ollama to use: one that answers, else one on PATH, else our own; None where there is none.

    Raises `KitError` where the one that answers is older than the kit can use.
    """
    return _serving(profile) or _on_path() or _installed(profile.home)


def install(profile: Profile) -> Engine:
    """`locate`, and where there is no Ollama, download it or build it under `profile.home`.

    One process installs at a time; a second one waits and then finds what the first has made.
    """
    if found := locate(profile):
        return found
    if sys.platform != "linux":
        raise KitError(
            f"There is no Ollama {sources()['engine']['minimum']} or newer on this machine and the kit installs it on "
            "Linux only; install it from https://ollama.com/download and start it."
        )
    home = profile.home
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "engine.lock"):
        return _installed(home) or _install_here(home, sources()["engine"])


@contextmanager
def running(profile: Profile, keep: bool = False) -> Iterator[Engine]:
    """An Ollama that answers, for the length of the block: its `url` is the base address.

    One that answers already is used and left alone. Otherwise ours is started, on a free port, and
    stopped again; with `keep` it goes on running, on the usual port where that is free, and later
    calls find it. Raises `KitError` where there is none, or where it does not come up in 30 s.
    """
    # Of two notebooks that begin at once, the second finds what the first has started.
    with FileLock(profile.home / "server.lock") if keep else nullcontext():
        engine = _up(profile, keep)
    try:
        yield engine
    finally:
        for process in engine.processes:
            if process.poll() is None and not keep:
                _end(process.pid)


def _up(profile: Profile, keep: bool) -> Engine:
    """An engine that answers; it is started where none does."""
    engine = locate(profile)
    if engine is None:
        raise KitError("There is no Ollama on this machine yet; run `kit setup`.")
    if engine.url:
        return engine
    address = _address(profile.ollama_host)
    port = address.port if keep and _is_free(address.port) else _free_port()
    engine = replace(engine, url=f"http://127.0.0.1:{port}")
    process = _begin(engine, profile, tied=not keep)
    if keep:
        started = psutil.Process(process.pid).create_time()
        replace_text(_record(profile), json.dumps({"pid": process.pid, "started": started, "url": engine.url}))
    return engine


def _begin(engine: Engine, profile: Profile, tied: bool) -> subprocess.Popen:
    """Start `engine` on the port of its address, and wait until it answers."""
    process = _start(engine.path, urlsplit(engine.url).port, profile.home, tied)
    try:
        _wait_until_up(process, engine.url, _log(profile.home))
    except BaseException:  # an interrupt among them
        _end(process.pid)
        raise
    engine.processes.append(process)
    return process


def revive(server: Engine, profile: Profile) -> bool:
    """Bring back a server of `running` that has died, on its address; False where it answers, so another thing failed.

    One that we started is started again. Another's is waited for, and True means: try again. Raises
    `KitError` where ours does not come up.
    """
    if answering_version(server.url):
        return False
    if server.path is None:
        time.sleep(START_SECONDS / 6)
    else:
        _begin(server, profile, tied=True)
    return True


def stop(profile: Profile) -> bool:
    """Stop the server that `running(keep=True)` left; False where there is none."""
    if not (kept := _read_json(_record(profile))):
        return False
    _record(profile).unlink()
    try:  # a number may have gone to another process
        ours = psutil.Process(kept["pid"]).create_time() == kept.get("started")
    except psutil.NoSuchProcess:
        return False
    if ours:
        _end(kept["pid"])
    return ours


def answering_version(url: str) -> str | None:
    """The version of the Ollama at `url`; None where nothing, or something else, answers."""
    try:
        version = httpx.get(f"{url}/api/version", timeout=3, trust_env=False).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


# --- what is here already


def _serving(profile: Profile) -> Engine | None:
    address = _address(profile.ollama_host)
    for url in (address.geturl(), _read_json(_record(profile)).get("url")):
        version = url and answering_version(url)
        if not version:
            continue
        if not _new_enough(version):
            raise KitError(
                f"The Ollama that answers on {url} is version {version} and the kit needs "
                f"{sources()['engine']['minimum']} or newer; update it, or stop it and run `kit setup`."
            )
        return Engine(version, "server", url=url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise KitError(f"OLLAMA_HOST names {address.geturl()}, where no Ollama answers; start it there, or unset it.")
    return None


def _address(host: str) -> SplitResult:
    """OLLAMA_HOST as Ollama reads it: `host`, `host:port` or a URL; a wildcard address is reached as loopback."""
    try:
        parts = urlsplit(host if "//" in host else f"http://{host}")
        port = parts.port or ({"http": 80, "https": 443}[parts.scheme] if "//" in host else DEFAULT_PORT)
    except (ValueError, KeyError) as error:
        raise KitError(f"OLLAMA_HOST is {host!r}, which is no address; use host:port, or unset it.") from error
    name = parts.hostname if parts.hostname not in (None, "0.0.0.0", "::") else "127.0.0.1"
    return urlsplit(f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}")


def _on_path() -> Engine | None:
    path = shutil.which("ollama")
    version = path and _binary_version(Path(path))
    return Engine(version, "PATH", Path(path)) if version and _new_enough(version) else None


def _installed(home: Path) -> Engine | None:
    path, made = home / "engine" / "bin" / "ollama", _read_json(home / "engine" / "engine.json")
    if not (path.is_file() and made and _new_enough(made["version"])):
        return None
    return Engine(made["version"], made["source"], path)


def _binary_version(path: Path) -> str | None:
    # No server is at port 1, so what is printed is the version of the binary itself.
    env = environment(OLLAMA_HOST="127.0.0.1:1")
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version is (\d[\w.+-]*)", told.stdout + told.stderr)
    return found and found[1]


def _new_enough(version: str) -> bool:
    try:
        return Version(version) >= Version(sources()["engine"]["minimum"])
    except InvalidVersion:
        return False


# --- making one


def _install_here(home: Path, pins: dict) -> Engine:
    for stale in home.glob("engine-*/"):  # of an installation that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="engine-", dir=home, ignore_cleanup_errors=True) as work:
        try:
            made, source = _from_archive(pins, home, Path(work)), "archive"
        except Unreachable:
            made, source = build_engine(pins["build"], pins["version"], Path(work), home / "logs"), "registries"
        replace_text(made / "engine.json", json.dumps({"version": pins["version"], "source": source}))
        shutil.rmtree(home / "engine", ignore_errors=True)
        made.rename(home / "engine")
    return _installed(home)


def _from_archive(pins: dict, home: Path, work: Path) -> Path:
    """Download and unpack the official archive; raises `Unreachable` where there is none for this machine."""
    import zstandard

    pin = pins["archives"].get(platform.machine())
    if not pin:
        raise Unreachable(f"Ollama has no official archive for {platform.machine()}.")
    archive = fetch(pin["url"], home / "ollama.tar.zst", pin["sha256"], f"Ollama {pins['version']}")
    made = work / "unpacked"
    with (
        full_disk_said(archive, f"Ollama {pins['version']}"),
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        unpack(tar, made)
    archive.unlink()
    if any(flag.startswith("amx") for flag in cpu_flags()):
        for library in made.rglob(AMX_LIBRARY):
            library.unlink()
    return made


# --- starting and stopping


def _start(binary: Path, port: int, home: Path, tied: bool) -> subprocess.Popen:
    log = _log(home)
    log.parent.mkdir(parents=True, exist_ok=True)
    env = environment(
        OLLAMA_HOST=f"127.0.0.1:{port}",
        OLLAMA_MODELS=str(home / "models"),
        OLLAMA_NOPRUNE="1",
        OLLAMA_NUM_PARALLEL="1",
        OLLAMA_MAX_LOADED_MODELS="2",
        OLLAMA_NO_CLOUD="1",  # nothing is asked of ollama.com while it serves
    )
    command = [str(binary), "serve"]
    if tied and sys.platform == "linux":
        command = [sys.executable, "-c", TIED, *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _wait_until_up(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while answering_version(url) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines() or ["nothing"]
            raise KitError(
                f"Ollama did not come up at {url} (its log {log} ends with: {lines[-1][:300]}); "
                "mend what the log names and try again."
            )
        time.sleep(0.1)


def _end(pid: int) -> None:
    """End a server and the runners in its session, gently first."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    family[0].terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _record(profile: Profile) -> Path:
    """Where the server that was left running is remembered."""
    return profile.home / "server.json"


def _log(home: Path) -> Path:
    return home / "logs" / "ollama.log"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
