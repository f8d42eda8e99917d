"""Files become documents, and documents become chunks with stable ids.

Everything streams: a file is read while its first chunks are already being used. What reads other
people's formats is kept at arm's length: `kit.pdf` is a process that limits its own time and memory, and
HTML goes through pandoc's sandbox. Not known here: OCR, images, passwords.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kit.config import KitError, expanded
from kit.pdf import MIB, PdfReader, ReadError

MAX_BYTES = {".pdf": 256 * MIB, ".html": 16 * MIB, ".htm": 16 * MIB, ".md": 32 * MIB, ".txt": 32 * MIB}
SUFFIXES = (*MAX_BYTES, ".jsonl")  # a .jsonl file is read line by line, so only its lines have a limit
MAX_LINE_BYTES = 8 * MIB
MAX_BAD_LINES = 20  # of one file that are listed one by one
HTML_SECONDS = 30.0
SUMMARIZE = (
    "Summarize this document in at most {words} words, so that the summary can be searched in its place. Keep every "
    "name, number, date, price and rule that fits; leave out introductions and repetitions. Write the summary alone."
)


@dataclass(frozen=True)
class Document:
    """A page of a PDF, a row of a .jsonl file, or the whole of any other file. `page` counts from 1."""

    source: str
    text: str
    page: int | None = None


@dataclass(frozen=True)
class Chunk:
    """A passage: at most `chunk_size` characters of one document, from character `start` of it.

    The same text keeps the same `id`.
    """

    id: str
    file: str
    source: str
    page: int | None
    text: str
    start: int

    @property
    def searched(self) -> str:
        """What the index searches: the text beneath its title, without which "the limit is 40" says nothing."""
        return f"{title(self.source)}\n{self.text}"


def title(source: str) -> str:
    """A source as a heading: the title of a .jsonl row as it is, the words of a file's name otherwise."""
    stem = Path(source).stem if source.lower().endswith(SUFFIXES) else source
    return " ".join(re.split(r"[-_./\s]+", stem)) if stem != source else source


def find_files(paths: Iterable[str | Path]) -> list[tuple[Path, str]]:
    """Every readable file at or beneath `paths`, sorted and once, as (absolute path, source).

    The source is the path relative to the folder that was given, or the name of a file that was
    given. Hidden files and symbolic links inside a folder are passed over: a link's target is
    either in the folder already, or was not given. Raises `KitError` for a path that does not
    exist, a folder that cannot be listed, and a file of a kind that cannot be read.
    """
    found: dict[Path, str] = {}
    for given in paths:
        path = expanded(given)
        if os.path.isdir(path):
            folder = path.resolve()
            for file in _walk(folder):
                found.setdefault(file, printable(file.relative_to(folder)))
        elif not os.path.exists(path):
            raise KitError(f"There is no file or folder {printable(path)}; check the path.")
        elif path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise KitError(
                f"The file {printable(path)} cannot be read; give one of {', '.join(SUFFIXES)}, or a folder."
            )
        else:
            found.setdefault(path.parent.resolve() / path.name, printable(path.name))
    return sorted(found.items())


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError):
        # To go on would look as if all files beneath it had been deleted.
        raise KitError(f"The folder {error.filename} cannot be listed ({error.strerror}); make it readable.") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if (
                not name.startswith(".")
                and file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not file.is_symlink()
            ):
                yield file


def printable(path: str | Path) -> str:
    """A path with forward slashes; bytes of it that are not UTF-8 are written as \\xff."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def read(file: Path, source: str, failed: list[dict] | None = None, pdf: PdfReader | None = None) -> Iterator[Document]:
    """The documents of one file, in order; blank pages are among them.

    `failed` gets a `{file, error}` for each bad line of a .jsonl file. `pdf` is a reader to share
    between files, else one is started for this file. Raises `ReadError` with one sentence where the
    file cannot be read, is too large, or holds no text, which shows only at its end.
    """
    suffix = file.suffix.lower()
    try:
        _check_size(file, source, suffix)
        if suffix == ".pdf":
            documents = _read_pdf(file, source, pdf)
        elif suffix == ".jsonl":
            documents = _read_jsonl(file, source, [] if failed is None else failed)
        else:
            text = _decode(file.read_bytes(), source)
            text = _html_to_text(text, source) if suffix in (".html", ".htm") else text
            documents = [Document(source, _clean(text))]
        blank = True
        for document in documents:
            blank = blank and not document.text.strip()
            yield document
    except OSError as error:
        raise ReadError(f"{source} cannot be read ({error.strerror or error}); check the file.") from error
    if blank and suffix == ".pdf":
        raise ReadError(f"{source} has no text on any page: it is probably a scan; run OCR first.")
    if blank:
        raise ReadError(f"{source} holds no text; remove it, or put a text into it.")


def whole_documents(paths: Iterable[str | Path], failed: list[dict]) -> list[Document]:
    """Every document at or beneath `paths` as one text, the pages of a PDF joined.

    `failed` gets a `{file, error}` for what cannot be read. Raises what `find_files` raises.
    """
    texts: dict[str, list[str]] = {}
    with PdfReader() as pdf:
        for file, source in find_files(paths):
            try:
                for document in list(read(file, source, failed, pdf)):  # all of a file, or none
                    texts.setdefault(document.source, []).append(document.text)
            except ReadError as error:
                failed.append({"file": source, "error": str(error)})
    return [Document(source, "\n\n".join(pages)) for source, pages in texts.items()]


def _check_size(file: Path, source: str, suffix: str) -> None:
    size = file.stat().st_size
    if size == 0:
        raise ReadError(f"{source} is empty (0 bytes); get the file again, or remove it.")
    limit = MAX_BYTES.get(suffix, size)
    if size > limit:
        raise ReadError(f"{source} has {size / MIB:.0f} MiB, more than the {limit // MIB} MiB allowed; split the file.")


def _clean(text: str) -> str:
    """Without what no database can hold (NUL, halves of surrogate pairs) and what a terminal would obey (escapes)."""
    text = re.sub(r"\r\n?", "\n", text.replace("\0", "").encode("utf-8", "ignore").decode())
    return re.sub(r"[\x01-\x08\x0b-\x1f\x7f-\x9f]", " ", text)


def _decode(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = _guess(data)
    if "\0" in text:
        raise ReadError(f"{source} is not text in a known encoding; save it as UTF-8.")
    return text


def _guess(data: bytes) -> str:
    """The text in charset-normalizer's best guess; Windows-1252 where that is as likely, for it is the most common."""
    import charset_normalizer

    matches = charset_normalizer.from_bytes(data)
    best = matches.best()
    if best is None:
        return "\0"
    for match in matches:
        if match.encoding == "cp1252" and (match.chaos, match.coherence) == (best.chaos, best.coherence):
            return str(match)
    if best.coherence == 0 and b"\0" not in data:  # no language was recognised, as with one name in a page of English
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("cp1252")
    return str(best)


def _html_to_text(html: str, source: str) -> str:
    """The visible text as pandoc sees it, a table row on a line; nothing is fetched."""
    import pypandoc

    command = [pypandoc.get_pandoc_path(), "--sandbox", "--quiet", "--from=html", "--to=plain", "--wrap=none"]
    command += [f"--lua-filter={Path(__file__).with_name('html.lua')}", "+RTS", "-M768m", "-RTS"]
    try:
        done = subprocess.run(command, input=html.encode(), capture_output=True, timeout=HTML_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ReadError(f"{source} took more than {HTML_SECONDS:.0f} s to read; split the page.") from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ReadError(f"{source} cannot be read as HTML ({reason[0]}); save it again, or split it.")
    return done.stdout.decode()


def _read_jsonl(file: Path, source: str, failed: list[dict]) -> Iterator[Document]:
    number, bad = 1, 0
    with file.open("rb") as lines:
        while line := lines.readline(MAX_LINE_BYTES):
            try:
                document = _row(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                document, bad = None, bad + 1
                if bad <= MAX_BAD_LINES:
                    failed.append({"file": f"{source}:{number}", "error": f"The line is left out: {error}."})
            if document:
                yield document
            number += line.endswith(b"\n")
    if bad > MAX_BAD_LINES:
        failed.append({"file": source, "error": f"{bad - MAX_BAD_LINES} more lines are left out for such reasons."})


def _row(line: bytes) -> Document:
    row = json.loads(line)
    title, text = (row.get("title"), row.get("text")) if isinstance(row, dict) else (None, None)
    if not (isinstance(title, str) and title.strip() and isinstance(text, str) and text.strip()):
        raise ValueError('it is no object with a "title" and a "text"')
    return Document(_clean(title), _clean(text))


def _read_pdf(file: Path, source: str, pdf: PdfReader | None) -> Iterator[Document]:
    with contextlib.nullcontext(pdf) if pdf else PdfReader() as reader:
        for number, text in enumerate(reader.pages(file, source), 1):
            yield Document(source, _clean(text), number)


def split(documents: Iterable[Document], file: Path, chunk_size: int, chunk_overlap: int) -> Iterator[Chunk]:
    """Passages of at most `chunk_size` characters, each within one document, neighbours sharing `chunk_overlap`.

    An id is the SHA-256 of the file's absolute path, source, page and text (32 hex digits), so
    unchanged text keeps its id when the rest of the file changes. The same text comes once a page.
    """
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=chunk_size, chunk_overlap=chunk_overlap, add_start_index=True)
    path = printable(file)
    for document in documents:
        places: dict[str, int] = {}
        for part in splitter.create_documents([document.text]):
            places.setdefault(part.page_content, part.metadata["start_index"])
        for text, start in places.items():
            key = "\0".join((path, document.source, str(document.page), text))
            id = hashlib.sha256(key.encode()).hexdigest()[:32]
            yield Chunk(id, path, document.source, document.page, text, start)


def compress(document: Document, model, tokens: int) -> Document:
    """The document with a summary of at most `tokens` tokens, written by `model`, in place of its text.

    `model` is a `kit.llm.ChatModel`. After Chan et al., Retrieval-Augmented Reasoning with Lean
    Language Models (arXiv 2508.11386), where summaries take the place of full pages. Raises what
    `complete` raises, `ContextOverflow` for a document that does not fit the window.
    """
    ask = SUMMARIZE.format(words=tokens // 2)  # a word has one and a half tokens, a number more
    messages = [{"role": "user", "content": f"{title(document.source)}\n\n{document.text}\n\n{ask}"}]
    return replace(document, text=model.complete(messages, max_tokens=tokens).text.strip())
