"""One run of an ingest: what changed goes in, what is gone comes out, and a run that was killed is finished.

Beside Chroma's own files the folder of an index holds `files.sqlite`, the manifest: which files are
in, with which content, as which chunks. A file has no hash in it while it is being written. A chunk
is noted there before Chroma gets it, with the number of the run, and is `live` once its file is whole.
The index by words (`kit.words`) is committed before the manifest calls a file whole, as Chroma is.
"""

import hashlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.config import KitError, expanded
from kit.corpus import Chunk, find_files, printable, read, split
from kit.pdf import PdfReader, ReadError
from kit.words import Words

BUFFER = 512  # chunks embedded in one call, across files: sorted by length they fill their batches
MANIFEST = "files.sqlite"
TABLES = """
create table if not exists files (path text primary key, source text, sha256 text, pages int, chunks int);
create table if not exists chunks (id text primary key, path text, live int, run int);
create index if not exists chunks_of_file on chunks (path);
"""


class Ingest:
    """A run over `paths`, into a Chroma collection; `most` is what Chroma takes at once.

    `embed` turns a list of n texts into vectors of shape (n, d).
    """

    def __init__(self, folder: Path, collection, words: Words, most: int, embed: Callable):
        self.collection, self.words, self.batch, self.embed = collection, words, min(BUFFER, most), embed
        self.run = time.time_ns()
        self.pdf = PdfReader()
        self.buffer: list[Chunk] = []
        self.whole: list[tuple[str, str, int, str]] = []  # files that are read to their end, but not yet written
        self.failed: list[dict] = []
        self.manifest = sqlite3.connect(folder / MANIFEST)
        self.manifest.executescript(TABLES)
        if collection.count() == 0:  # a manifest that was left alone knows of chunks that are nowhere
            self._sql("delete from files")
            self._sql("delete from chunks")
            self.words.clear()
        elif words.count() == 0:  # it was lost: all files are read again, but what Chroma has is not embedded again
            self._sql("update files set sha256 = ''")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pdf.close()
        self.manifest.close()
        self.words.finish()

    def __call__(self, paths: list[str | Path]) -> dict:
        """Do it; returns what `Index.ingest` returns, less the seconds."""
        files = find_files(paths)
        here = {printable(file) for file, _ in files}
        gone = self._gone(here, paths)
        if not files and not gone:
            given = ", ".join(map(str, paths))
            raise KitError(f"There is no document in {given}; `kit ingest --help` says which kinds are read.")
        added, unchanged = self._add(files)
        for path in gone:
            self._delete("path = ?", path)
            self._sql("delete from files where path = ?", path)
        self._commit()
        held = [self._held(path) for path in here]
        return {
            "files": len(files),
            "pages": sum(row[2] for row in held),
            "chunks": sum(row[3] for row in held),
            "added": added,
            "unchanged": unchanged,
            "removed": len(gone),
            "failed": self.failed,
        }

    def _gone(self, here: set[str], paths: list[str | Path]) -> list[str]:
        """Files of the manifest that were beneath `paths`, and are there no more."""
        roots = [printable(expanded(path).resolve()).rstrip("/") + "/" for path in paths]
        known = [path for (path,) in self._sql("select path from files")]
        return [path for path in known if path not in here and path.startswith(tuple(roots))]

    def _add(self, files: list[tuple[Path, str]]) -> tuple[int, int]:
        from tqdm import tqdm

        sizes = [file.stat().st_size if file.exists() else 0 for file, _ in files]
        added, total = [], sum(sizes)
        with tqdm(total=total, desc="ingest", unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
            for (file, source), size in zip(files, sizes, strict=True):
                end = bar.n + size
                try:
                    added.append(self._file(file, source, lambda text, end=end: bar.update(_step(text, end - bar.n))))
                except ReadError as error:
                    self.failed.append({"file": source, "error": str(error)})
                bar.update(max(0, end - bar.n))
            self._flush()
        return added.count(True), added.count(False)

    def _file(self, file: Path, source: str, progress: Callable[[str], None]) -> bool:
        """Put the chunks of a file into the buffer; False where the file is unchanged."""
        path, sha256 = printable(file), _sha256(file, source)
        if self._held(path)[:2] == (source, sha256):
            return False
        self._sql("insert into files values (?, ?, '', 0, 0) on conflict do update set sha256 = ''", path, source)
        pages = 0

        def documents() -> Iterator:
            nonlocal pages
            for document in read(file, source, self.failed, self.pdf):
                pages += 1
                progress(document.text)
                yield document

        built = self.collection.metadata
        try:
            for chunk in split(documents(), file, built["chunk_size"], built["chunk_overlap"]):
                self.buffer.append(chunk)
                if len(self.buffer) >= self.batch:
                    self._flush()
        except ReadError:
            # What the file had before stays; its new chunks go, for they are only a part of it.
            self.buffer = [chunk for chunk in self.buffer if chunk.file != path]
            self._delete("path = ? and live = 0", path)
            self._sql("delete from files where path = ? and chunks = 0", path)
            raise
        self.whole.append((source, sha256, pages, path))
        return True

    def _flush(self) -> None:
        """Write the buffer; every file that was read to its end is whole then."""
        new = {chunk.id: chunk for chunk in self.buffer}
        for chunk in new.values():
            self._sql(
                "insert into chunks (id, path, live, run) values (?, ?, 0, ?) "
                "on conflict do update set run = excluded.run",
                *(chunk.id, chunk.file, self.run),
            )
        self.words.put(new.values())
        self.manifest.commit()  # from here on the chunks can be found again, whatever happens
        self._store(new)
        self.buffer = []
        for *values, path in self.whole:
            self._delete("path = ? and run <> ?", path, self.run)
            self._sql("update chunks set live = 1 where path = ?", path)
            (count,) = self._sql("select count(*) from chunks where path = ?", path).fetchone()
            update = "update files set source = ?, sha256 = ?, pages = ?, chunks = ? where path = ?"
            self._sql(update, *values, count, path)
        self.whole = []
        self._commit()

    def _store(self, new: dict[str, Chunk]) -> None:
        """Put chunks into Chroma, embedded; where it has them, their text may stand elsewhere now."""
        if known := self.collection.get(ids=list(new), include=[])["ids"] if new else []:
            self.collection.update(ids=known, metadatas=[_metadata(new.pop(id)) for id in known])
        if chunks := list(new.values()):
            self.collection.add(
                ids=[chunk.id for chunk in chunks],
                embeddings=self.embed([chunk.searched for chunk in chunks]),
                documents=[chunk.text for chunk in chunks],
                metadatas=[_metadata(chunk) for chunk in chunks],
            )

    def _held(self, path: str) -> tuple[str, str, int, int]:
        """Source, hash, pages and chunks of a file, as the manifest has them."""
        row = self._sql("select source, sha256, pages, chunks from files where path = ?", path).fetchone()
        return row or ("", "", 0, 0)

    def _delete(self, where: str, *values) -> None:
        """Delete chunks, from Chroma first: the manifest must know of all that Chroma has."""
        while rows := self._sql(f"select id from chunks where {where} limit {self.batch}", *values).fetchall():
            ids = [id for (id,) in rows]
            self.collection.delete(ids=ids)
            self.words.delete(ids)
            self.manifest.executemany("delete from chunks where id = ?", rows)

    def _commit(self) -> None:
        self.words.commit()
        self.manifest.commit()

    def _sql(self, statement: str, *values) -> sqlite3.Cursor:
        return self.manifest.execute(statement, values)


def _sha256(file: Path, source: str) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise ReadError(f"{source} cannot be read ({error.strerror}); check the file.") from error


def _step(text: str, left: int) -> int:
    """Bytes of the file that this text stands for, as far as the progress bar is concerned."""
    return max(0, min(left, len(text.encode())))


def _metadata(chunk: Chunk) -> dict:
    page = {} if chunk.page is None else {"page": chunk.page}
    return {"source": chunk.source, "start": chunk.start, **page}
