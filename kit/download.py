"""A file from the network, whole and checked."""

import errno
import functools
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from kit.config import KitError, environment

CONNECT_SECONDS = 4  # a place that cannot be reached is given up quickly, for the next one
READ_SECONDS = 60
ATTEMPTS = 5  # how often a transfer that broke off is taken up again
CHUNK = 2**16  # bytes; what is lost of a transfer that breaks off


class Unreachable(KitError):
    """The place does not answer or does not have the file; another place may."""


def fetch(
    url: str,
    to: Path,
    sha256: str | None,
    label: str,
    size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Download `url` to `to`, unless it is there already; `to` exists only when it is whole.

    What was got so far is kept in `<to>.part` and taken up from there, by this call and by the next.
    `size` in bytes, where known, is compared with the free disk first. `progress` is told the bytes
    that arrive; without it a bar with `label` is shown. Raises `Unreachable` when nothing answers,
    and `KitError` for a full disk or a wrong SHA-256 (the part is then removed).
    """
    if to.is_file():
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(to.name + ".part")
    if size:
        need_disk(to.parent, size - (part.stat().st_size if part.is_file() else 0), label)
    with session() as http:
        for attempt in range(ATTEMPTS):
            try:
                with full_disk_said(part, label):
                    _transfer(http, url, part, label, progress)
                break
            except requests.HTTPError as error:
                raise Unreachable(f"{label} cannot be downloaded: {error}.") from error
            except requests.RequestException as error:
                if attempt == ATTEMPTS - 1 or not part.is_file():
                    raise Unreachable(f"{label} cannot be downloaded from {url} ({_reason(error)}).") from error
    if sha256 and (found := checksum(part)) != sha256:
        part.unlink()
        raise KitError(
            f"{label} from {url} has the SHA-256 {found} and not {sha256}, so it was thrown away; "
            "try again, and if that repeats, do not trust that place."
        )
    return part.replace(to)


def _transfer(
    http: requests.Session, url: str, part: Path, label: str, progress: Callable[[int], object] | None
) -> None:
    """One request: append to `part` what it does not hold yet."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with http.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as reply:
        if reply.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the part was whole already; its sum will tell
        reply.raise_for_status()
        resumed = reply.status_code == requests.codes.partial_content
        have = have if resumed else 0
        total = have + int(reply.headers.get("Content-Length", 0)) or None
        silent = True if progress else None  # None: silent where standard error is no terminal
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(desc=label, total=total, initial=have, unit="B", unit_scale=True, disable=silent) as bar,
        ):
            for chunk in reply.iter_content(CHUNK):
                file.write(chunk)
                (progress or bar.update)(len(chunk))


def session() -> requests.Session:
    """An HTTP session that asks again, with growing pauses, when a server is busy or fails."""
    http = requests.Session()
    retry = Retry(total=4, connect=1, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("http://", "https://"):
        http.mount(scheme, HTTPAdapter(max_retries=retry))
    return http


def registry_file(project: str, version: str, kind: str) -> tuple[str, str | None]:
    """Address and published SHA-256 of a file in the Python package index that pip is configured with.

    `kind` is `wheel` or `sdist`. Raises `Unreachable` when the index does not answer or has no such file.
    """
    from pypi_simple import NoSuchProjectError, PyPISimple  # takes a second to import, which `kit --help` does not need

    index = _configured_index()
    place = {"endpoint": index} if index else {}
    with session() as http, PyPISimple(**place, session=http) as client:
        try:
            page = client.get_project_page(project, timeout=(CONNECT_SECONDS, READ_SECONDS))
        except (requests.RequestException, NoSuchProjectError, ValueError) as error:
            raise Unreachable(
                f"The Python package index does not give {project} ({_reason(error)}); "
                "check the network and pip's index-url."
            ) from error
    for package in page.packages:
        if package.version == version and package.package_type == kind:
            return package.url, package.digests.get("sha256")
    raise Unreachable(f"The Python package index has no {kind} of {project} {version}; use an index that carries it.")


@functools.cache
def _configured_index() -> str | None:
    """The index that pip uses; None stands for the default of the client library."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    settings = {}
    for line in subprocess.run(pip, capture_output=True, text=True).stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key] = value.strip().strip("'\"")
    by_precedence = (":env:.index-url", "install.index-url", "global.index-url")
    found = [settings[key] for key in by_precedence if key in settings]
    # In an environment without pip, nothing was listed: its own variable is read then.
    return found[0] if found else environment().get("PIP_INDEX_URL")


def need_disk(folder: Path, size: int, label: str) -> None:
    """Raise `KitError` when the disk that holds `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise KitError(
            f"{label} needs {size / 1e9:.2f} GB in {folder} and {free / 1e9:.2f} GB are free; "
            "make room, or set KIT_HOME to a folder on a larger disk."
        )


def unpack(tar: tarfile.TarFile, to: Path, members: list[tarfile.TarInfo] | None = None) -> None:
    """Extract `members`, or all, below `to`; raises `tarfile.FilterError` for a name that leads elsewhere.

    Python before 3.11.4 (Debian 12 has 3.11.2) cannot look at the names: there the checksum of the archive has to do.
    """
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(to, members)


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def full_disk_said(file: Path, label: str) -> Iterator[None]:
    """Turn a disk that fills up while `file` is written into a `KitError`; what is written stays."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:
        # Libraries such as PyTorch and safetensors raise errors of their own, without a number: the disk is asked, too.
        if getattr(error, "errno", None) != errno.ENOSPC and shutil.disk_usage(file.parent).free > CHUNK:
            raise
        raise KitError(
            f"The disk is full while {label} is being written to {file}, which is kept; "
            "make room and run this again, and it goes on from there."
        ) from error


def _reason(error: Exception) -> str:
    """The innermost cause in a few words: HTTP libraries wrap it several times over."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
