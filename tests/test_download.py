"""Downloads: resumed, checked, and clear about what went wrong; a scripted server stands in for the network."""

import errno
import hashlib
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from safetensors import SafetensorError

from kit import download
from kit.config import KitError
from kit.download import CHUNK, Unreachable, fetch, full_disk_said, registry_file

DATA = bytes(range(256)) * 4000
SUM = hashlib.sha256(DATA).hexdigest()


class FileServer:
    """Serves `files`; `cut` limits how many bytes of each of the first answers arrive; keeps the Range headers."""

    def __init__(self, files: dict[str, bytes], cut: list[int] = (), ranges: bool = True):
        self.files, self.cut, self.asked = files, list(cut), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.headers.get("Range"))
                body = outer.files.get(self.path)
                if body is None:
                    return self.send_error(404)
                start = int(self.headers["Range"][6:-1]) if ranges and self.headers.get("Range") else 0
                if start and start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
                self.end_headers()
                end = start + outer.cut.pop(0) if outer.cut else len(body)
                self.wfile.write(body[start:end])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve():
    servers = []

    def start(files: dict[str, bytes], **options) -> FileServer:
        servers.append(FileServer(files, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def test_fetches_checks_and_then_leaves_alone(serve, tmp_path):
    server, to = serve({"/f": DATA}), tmp_path / "new" / "f"
    assert fetch(f"{server.url}/f", to, SUM, "a file", len(DATA)).read_bytes() == DATA
    fetch(f"{server.url}/f", to, SUM, "a file")
    assert len(server.asked) == 1
    assert [p.name for p in to.parent.iterdir()] == ["f"]


def test_a_transfer_that_breaks_off_is_taken_up_again(serve, tmp_path):
    server = serve({"/f": DATA}, cut=[300_000, 400_000])
    assert fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file").read_bytes() == DATA
    starts = [int(asked[6:-1]) if asked else 0 for asked in server.asked]
    assert starts == [0, 4 * CHUNK, 10 * CHUNK]  # all whole chunks of 300,000 and of 400,000 bytes more


def test_the_next_call_goes_on_from_what_a_killed_one_left(serve, tmp_path):
    server = serve({"/f": DATA})
    (tmp_path / "f.part").write_bytes(DATA[:1000])
    got = []
    fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file", progress=got.append)
    assert server.asked == ["bytes=1000-"]
    assert sum(got) == len(DATA) - 1000


def test_a_part_that_is_whole_is_only_renamed(serve, tmp_path):
    (tmp_path / "f.part").write_bytes(DATA)
    assert fetch(f"{serve({'/f': DATA}).url}/f", tmp_path / "f", SUM, "a file").read_bytes() == DATA


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    server = serve({"/f": DATA}, ranges=False)
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    assert fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file").read_bytes() == DATA


def test_a_wrong_checksum_names_both_and_removes_the_part(serve, tmp_path):
    with pytest.raises(KitError, match=f"{SUM} and not {'0' * 64}") as caught:
        fetch(f"{serve({'/f': DATA}).url}/f", tmp_path / "f", "0" * 64, "a file")
    assert not isinstance(caught.value, Unreachable)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_lacks_the_file_or_does_not_answer_is_unreachable(serve, tmp_path, free_port):
    with pytest.raises(Unreachable, match="404"):
        fetch(f"{serve({}).url}/f", tmp_path / "f", SUM, "a file")
    with pytest.raises(Unreachable, match="cannot be downloaded"):
        fetch(f"http://127.0.0.1:{free_port}/f", tmp_path / "f", SUM, "a file")


def test_too_little_disk_is_said_before_anything_is_fetched(serve, tmp_path, monkeypatch):
    server = serve({"/f": DATA})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(KitError, match=r"0\.00 GB are free; make room"):
        fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file", len(DATA))
    assert server.asked == []


def test_a_disk_that_fills_up_keeps_the_part(serve, tmp_path, monkeypatch):
    server = serve({"/f": DATA})
    (tmp_path / "f.part").write_bytes(DATA[:1000])

    class FullDisk:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, chunk):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a: FullDisk() if "a" in mode else real(self, mode, *a))
    with pytest.raises(KitError, match=r"disk is full.*f\.part, which is kept"):
        fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file")
    monkeypatch.undo()
    assert fetch(f"{server.url}/f", tmp_path / "f", SUM, "a file").read_bytes() == DATA


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 576 vs 534"), SafetensorError("os error 28")])
def test_a_full_disk_is_known_by_what_is_free_where_a_library_does_not_say_it(tmp_path, monkeypatch, error):
    for free, kind, says in ((0, KitError, "disk is full while a checkpoint"), (10**9, type(error), str(error))):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(10**9, 10**9, free))
        with pytest.raises(kind, match=says), full_disk_said(tmp_path / "model", "a checkpoint"):
            raise error


PAGE = b"""<!DOCTYPE html><html><head><title>Links</title></head><body>
<a href="../../files/a_project-1.0-py3-none-any.whl#sha256=%b">a_project-1.0-py3-none-any.whl</a>
<a href="../../files/a_project-1.0.tar.gz">a_project-1.0.tar.gz</a>
<a href="../../files/a_project-2.0-py3-none-any.whl">a_project-2.0-py3-none-any.whl</a>
</body></html>""" % SUM.encode()


@pytest.fixture
def index(serve, monkeypatch):
    """A package index that answers in HTML, and that pip is configured with."""
    server = serve({"/simple/a-project/": PAGE})
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    download._configured_index.cache_clear()
    yield server
    download._configured_index.cache_clear()


def test_registry_file_reads_the_index_that_pip_is_configured_with(index):
    wheel, sha256 = registry_file("a-project", "1.0", "wheel")
    assert (wheel, sha256) == (f"{index.url}/files/a_project-1.0-py3-none-any.whl", SUM)
    assert registry_file("a-project", "1.0", "sdist") == (f"{index.url}/files/a_project-1.0.tar.gz", None)


@pytest.mark.parametrize("project, version, kind", [("a-project", "3.0", "wheel"), ("a-project", "2.0", "sdist")])
def test_a_file_that_the_index_lacks(index, project, version, kind):
    with pytest.raises(Unreachable, match=f"no {kind} of {project} {version}"):
        registry_file(project, version, kind)


def test_a_project_that_the_index_lacks(index):
    with pytest.raises(Unreachable, match="does not give no-such"):
        registry_file("no-such", "1.0", "wheel")


def test_pips_own_configuration_goes_before_the_default(monkeypatch):
    listed = "global.index-url='http://two/simple'\n:env:.index-url='http://one/simple'\nglobal.cert='/c'\n"
    answer = type("Answer", (), {"stdout": listed})()
    monkeypatch.setattr(download.subprocess, "run", lambda *a, **k: answer)
    configured = download._configured_index.__wrapped__  # without its memory
    assert configured() == "http://one/simple"
    answer.stdout = "global.index-url='http://two/simple'"
    assert configured() == "http://two/simple"


def test_the_reason_is_the_innermost_one():
    try:
        try:
            raise OSError("no route")
        except OSError as inner:
            raise requests.ConnectionError("wrapped") from inner
    except requests.ConnectionError as error:
        assert download._reason(error) == "no route"
