"""The pages of a PDF, read in a process that limits its own time and memory.

pypdf has had many faults that let a small file take all the memory or never end; here such a file
costs its reader process and is reported, and the next file gets a new process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kit.config import KitError

MIB = 2**20
MEMORY = 896 * MIB  # on top of what the imports take, about 90 MiB
SECONDS = 15.0  # to open a file and reach its first page, for any one page, and as credit for slow pages
CHARACTERS_PER_SECOND = 10_000  # text buys time: pypdf reads about 500,000, a bomb yields none
MAX_PAGES = 20_000
MAX_CHARACTERS = 30_000_000
BOMB_CHARACTERS, BOMB_PAGE = 3_000_000, 50_000  # so much text, at so much a page, was made to harm
BOMB = "unpacks to far more than its size, like a decompression bomb; print it to a new PDF"
OUT_OF_MEMORY = 77  # exit code of the reader process


class ReadError(KitError):
    """One file that cannot be read; it stops no other."""


class PdfReader:
    """Reads PDFs in a process of its own; it starts at the first one, and again after one that killed it.

    A plain subprocess that talks in lines of JSON, because `multiprocessing` would run a script
    without a `__main__` guard, or a notebook, a second time.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def pages(self, file: Path, source: str) -> Iterator[str]:
        """The text of each page as it is read. Raises `ReadError`."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        over = False
        try:
            print(json.dumps(str(file)), file=self.process.stdin, flush=True)
            for line in self.process.stdout:
                message = json.loads(line)
                if "text" in message:
                    yield message["text"]
                    continue
                over = True
                if message["error"]:
                    raise ReadError(f"{source} {message['error']}.")
                return
            raise ReadError(f"{source} {self._last_words()}.")
        finally:
            if not over:  # it died, or the caller went away in the middle of a file
                self.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> None:
        # The same search path as here, so that it finds the same packages.
        program = f"import sys; sys.path[:] = {sys.path!r}; from kit.pdf import serve_pdfs; serve_pdfs()"
        command = [sys.executable, "-W", "ignore", "-c", program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _last_words(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGALRM:
            return f"was given up after {SECONDS:.0f} s without progress; print it to a new PDF"
        if code in (OUT_OF_MEMORY, -signal.SIGKILL):
            return "needs more than 1 GiB of memory to read; print it to a new PDF, or split it"
        return f"crashed the PDF reader (exit code {code}); print it to a new PDF"


def serve_pdfs() -> None:
    """The PDF process: the names of files come in, their pages go out, one JSON value a line, until the input ends.

    It holds itself to its limits, so that they hold even when its parent is gone: SIGALRM ends it
    whatever it is doing, and RLIMIT_AS makes an allocation fail. macOS ignores the latter.
    """
    import logging
    import resource

    import psutil
    from langchain_community.document_loaders import PyPDFLoader  # the only place that names this package

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that is gone needs no traceback
    logging.disable()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a page
    limit = psutil.Process().memory_info().vms + MEMORY
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    for line in sys.stdin:
        try:
            for text in _limited(PyPDFLoader(json.loads(line)).lazy_load()):
                print(json.dumps({"text": text}), file=replies, flush=True)
            error = None
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # what is left of this process is not to be trusted
        except Exception as problem:  # pypdf meets broken files with errors of every class
            error = _pdf_problem(problem)
        print(json.dumps({"error": error}), file=replies, flush=True)


class _TooLong(Exception):
    pass


def _limited(pages: Iterator) -> Iterator[str]:
    """The text of `pages`, with the alarm set while a page is read, and off while it is used."""
    left, characters = SECONDS, 0
    for number in range(1, MAX_PAGES + 1):
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(0.01, min(left, SECONDS)))
        try:
            page = next(pages, None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if page is None:
            return
        text = page.page_content
        # A blank page buys 1 ms, or a long scan would run out of time before it is known to be one.
        left += (len(text) + 10) / CHARACTERS_PER_SECOND - (time.monotonic() - started)
        characters += len(text)
        if characters > MAX_CHARACTERS:
            raise _TooLong(f"holds more than {MAX_CHARACTERS} characters; split it")
        if characters > BOMB_CHARACTERS and characters > BOMB_PAGE * number:
            raise _TooLong(BOMB)
        yield text
    raise _TooLong(f"has more than {MAX_PAGES} pages; split it")


def _pdf_problem(error: Exception) -> str:
    from pypdf import errors

    if isinstance(error, _TooLong):
        return str(error)
    if isinstance(error, errors.DependencyError) and "cryptography" in str(error):
        return "is encrypted with AES, which takes the package cryptography to read; install it"
    if isinstance(error, errors.FileNotDecryptedError | errors.WrongPasswordError):
        return "is encrypted; save a copy without its password"
    if isinstance(error, errors.LimitReachedError):
        return BOMB
    return f"is damaged or cut short ({type(error).__name__}: {error}); get a whole copy"
