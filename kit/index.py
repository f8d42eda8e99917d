"""Embed chunks and keep them in Chroma; refuse an index that other settings built.

How files get in is in `kit.ingest`. Not known here: more than one collection in a folder, and
vectors that do not fit in memory, where Chroma keeps all of them while an index is open.
"""

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from kit.config import KitError
from kit.ingest import MANIFEST, Ingest

if TYPE_CHECKING:
    import numpy as np

COLLECTION = "chunks"
FORMAT = 2  # raised whenever what is embedded or how it is kept changes
LONGEST_QUERY = 64  # words that `match` looks for
SHORTEST_NAME, LONGEST_NAME = 4, 8  # characters, words; shorter names are also common words ("It")
MATCHES = 10_000  # chunks that BM25 scores for a query, in some 15 ms; all of 100,000 would take 120


Row = tuple[str, str, int | None, float, str, int]  # id, source, page, score, text, start


class Embedder:
    """A sentence-transformers model in a local folder, loaded at its first use and never from the network."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        self._model = None
        self._one = threading.Lock()  # a tokenizer serves one thread at a time

    @property
    def dimension(self) -> int:
        """Length of a vector; loads the model."""
        return self.load().get_embedding_dimension()

    def encode(self, texts: list[str], is_query: bool = False) -> "np.ndarray":
        """Unit vectors, float32 of shape (len(texts), dimension), with the model's own prompt for queries.

        Raises `KitError` where the folder holds no model, or a broken one.
        """
        model = self.load()
        encode = model.encode_query if is_query else model.encode_document
        with self._one:
            return encode(texts, normalize_embeddings=True, show_progress_bar=False)

    def load(self):
        """The model, loaded when this is called first: 10 to 20 s, most of it Python's imports. Raises as `encode`."""
        if self._model is None:
            if not (self.path / "modules.json").is_file():
                raise KitError(f"There is no embedding model in {self.path}; run `kit setup`.")
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging

            bars = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()
            try:
                self._model = SentenceTransformer(str(self.path), local_files_only=True)
            except Exception as error:  # of any class, for it parses half a dozen kinds of file
                raise KitError(
                    f"The embedding model in {self.path} is broken ({error}); delete it, and run `kit setup`."
                ) from error
            finally:
                if bars:
                    logging.enable_progress_bar()
        return self._model


class Index:
    """Chunks, their vectors and where they come from, in one folder; made by `open` or `create`."""

    def __init__(self, folder: Path, embedder: Embedder, settings: dict):
        self.folder, self.embedder = folder, embedder
        self._client, self._collection = _connect(folder, settings)
        try:
            self._check(settings)
        except KitError:
            self.close()
            raise

    @classmethod
    def open(cls, folder: str | Path, embedder: Embedder) -> "Index":
        """An index to search.

        Raises `KitError` where there is none, where it is empty, where another model embedded it,
        and while another process writes to it.
        """
        folder = Path(folder)
        if not (folder / "chroma.sqlite3").is_file() or not (folder / MANIFEST).is_file():
            raise KitError(_no_index(folder))
        # Chroma read by one process while another writes it gives stale answers, or none.
        with _guarded(folder, wait=5):
            index = cls(folder, embedder, {"embedding": embedder.name, "format": FORMAT})
        if index.count() == 0:
            index.close()
            raise KitError(_no_index(folder))
        return index

    @classmethod
    def create(cls, folder: str | Path, embedder: Embedder, chunk_size: int, chunk_overlap: int) -> "Index":
        """An index to write to, new or with what it holds; `chunk_size` and `chunk_overlap` are in characters.

        Raises `KitError` where other settings built it, and while another process writes to it.
        """
        if not 0 <= chunk_overlap < chunk_size:
            raise KitError(
                f"Chunks of {chunk_size} characters cannot overlap by {chunk_overlap}; "
                "give a size above 0 and an overlap below it."
            )
        settings = {"embedding": embedder.name, "chunk_size": chunk_size, "chunk_overlap": chunk_overlap}
        settings["format"] = FORMAT
        with _guarded(Path(folder)):
            return cls(Path(folder), embedder, settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Release the folder; the index cannot be used afterwards."""
        self._client.close()

    def count(self) -> int:
        """Chunks in the index."""
        return self._collection.count()

    def search(self, query: str, k: int, ids: list[str] | None = None) -> list[Row]:
        """The `k` nearest chunks, of those with `ids` if given, best first; the score is the cosine similarity."""
        found = self._collection.query(
            query_embeddings=self.embed([query], is_query=True),
            ids=ids,
            n_results=k,
            include=["documents", "metadatas", "distances"],
        )
        ids, metadatas, distances, texts = (found[name][0] for name in ("ids", "metadatas", "distances", "documents"))
        rows = _rows(ids, metadatas, [min(1.0, 1.0 - distance) for distance in distances], texts)
        return sorted(rows, key=lambda row: (-row[3], row[0]))  # ties always in the same order

    def match(self, query: str, n: int) -> list[str]:
        """Ids of the `n` chunks that share the most telling words with `query`, best first.

        The order is that of BM25 over stemmed words, as SQLite's FTS5 computes it
        (https://www.sqlite.org/fts5.html); a chunk that shares no word is not among them. The rarest words count,
        as many as `MATCHES` chunks have: all of them in a small index, in a large one not those that are everywhere.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", query)))[:LONGEST_QUERY]
        if not words:
            return []
        found = (
            "select id from words join chunks on chunks.number = words.rowid where words match ? order by rank limit ?"
        )
        with closing(self._manifest()) as db:
            return [id for (id,) in db.execute(found, (" OR ".join(_rarest(db, words)), n))]

    def named(self, text: str, query: str, k: int, known: str = "") -> list[Row]:
        """Of the sources whose name stands in `text`, with its capitals, the `k` chunks nearest to `query`.

        The name of a file is what `corpus.title` makes of it; what stands in brackets behind a name is no part of it.
        Names that stand in `known` do not count.
        """
        names = {name for name in _names(text) if f" {name} " not in f" {_bare(known)} "}
        if not names:
            return []
        headed = " OR ".join(f'^"{name}"' for name in sorted(names))  # a chunk is searched beneath its source's name
        found = "select id, text from words join chunks on chunks.number = words.rowid where words match ? limit ?"
        with closing(self._manifest()) as db:
            rows = db.execute(found, (headed, MATCHES)).fetchall()
        ids = [id for id, chunk in rows if _bare(chunk.partition("\n")[0]) in names]
        if ids:  # Chroma fails for one that it does not hold, as after an ingest that was killed
            ids = self._collection.get(ids=ids, include=[])["ids"]
        return self.search(query, min(k, len(ids)), ids) if ids else []

    def get(self, ids: list[str]) -> list[Row]:
        """The chunks with these ids, in any order, as `search` returns them; the score is 0."""
        return self._held(0.0, ids=ids)

    def passages(self, source: str, page: int | None = None) -> list[Row]:
        """Every chunk of a source, or of one page of it, as `search` returns them; the score is 1."""
        return self._held(
            1.0, where={"source": source} if page is None else {"$and": [{"source": source}, {"page": page}]}
        )

    def _manifest(self) -> sqlite3.Connection:
        manifest = (self.folder / MANIFEST).absolute().as_uri()
        return sqlite3.connect(f"{manifest}?mode=rw", uri=True)  # so a killed writer's journal is undone

    def _held(self, score: float, **which) -> list[Row]:
        found = self._collection.get(**which, include=["documents", "metadatas"])
        return _rows(found["ids"], found["metadatas"], [score] * len(found["ids"]), found["documents"])

    def ingest(self, paths: list[str | Path]) -> dict:
        """Bring the index up to date with the files at and beneath `paths`.

        Returns `{files, pages, chunks, added, unchanged, removed, failed: [{file, error}], seconds}`:
        `files` that were found, the `pages` and `chunks` that these have in the index now, how many
        were `added` (new or changed) or `unchanged`, and how many were `removed` because they are
        gone from beneath `paths`. A file that cannot be read is in `failed`, stops no other, and
        keeps what it had in the index; a bad line of a .jsonl file is in `failed` when the file is
        read. Raises `KitError` for paths without any document, for a second writer, and for a full
        disk; what was written stays, and the next run goes on from there.
        """
        started = time.monotonic()
        with (
            _guarded(self.folder),
            Ingest(self.folder, self._collection, self._client.get_max_batch_size(), self.embed) as run,
        ):
            result = run(paths)
        return {**result, "seconds": round(time.monotonic() - started, 3)}

    def embed(self, texts: list[str], is_query: bool = False) -> "np.ndarray":
        """Unit vectors, float32 of shape (len(texts), d). Raises `KitError` where d is not the index's own."""
        vectors = self.embedder.encode(texts, is_query=is_query)
        if "dimension" not in self._collection.metadata:
            self._collection.modify(metadata={**self._collection.metadata, "dimension": vectors.shape[1]})
        self._check({"dimension": vectors.shape[1]})
        return vectors

    def _check(self, settings: dict) -> None:
        built = self._collection.metadata
        other = [key for key, value in settings.items() if built.get(key) != value]
        if other:
            then, now = (", ".join(f"{key} {source.get(key)}" for key in other) for source in (built, settings))
            raise KitError(
                f"The index {self.folder} was built with {then}, not with {now}; "
                "use another --index folder, or delete this one and ingest again."
            )


def _connect(folder: Path, settings: dict):
    """Chroma's client and collection; `settings` become the metadata of a new collection, and only of a new one."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
    cosine = {"hnsw": {"space": "cosine"}}
    return client, client.get_or_create_collection(
        COLLECTION, embedding_function=None, configuration=cosine, metadata=settings
    )


def _rows(ids, metadatas, scores, texts) -> list[Row]:
    columns = zip(ids, metadatas, scores, texts, strict=True)
    return [(i, m["source"], m.get("page"), score, text, m["start"]) for i, m, score, text in columns]


def _rarest(db: sqlite3.Connection, words: list[str]) -> list[str]:
    """The rarest of `words` as phrases: at least one, and as many as have fewer than `MATCHES` chunks together."""
    counted = "select count(*) from (select 1 from words where words match ? limit ?)"  # no chunk is scored for it
    chunks = {f'"{word}"': db.execute(counted, (f'"{word}"', MATCHES)).fetchone()[0] for word in words}
    rarest = sorted(chunks, key=chunks.__getitem__)
    matched = accumulate(chunks[word] for word in rarest)
    return [word for word, total in zip(rarest, matched, strict=True) if word == rarest[0] or total < MATCHES]


def _names(text: str) -> set[str]:
    """What in `text` may be a name: runs of words that begin and end with a capital, as `_bare` writes them."""
    words = [(word, word[0].isupper()) for word in re.findall(r"\w+", text)]
    starts = [place for place, (_, capital) in enumerate(words) if capital]
    runs = [words[start : start + length] for start in starts for length in range(1, LONGEST_NAME + 1)]
    names = {" ".join(word for word, _ in run).casefold() for run in runs if run[-1][1]}
    return {name for name in names if len(name) >= SHORTEST_NAME}


def _bare(heading: str) -> str:
    """The words of a source's heading in small letters, without what stands in brackets at its end."""
    return " ".join(re.findall(r"\w+", re.sub(r"\s*\([^()]*\)$", "", heading))).casefold()


def _no_index(folder: Path) -> str:
    return f"There is no index in {folder}, or an empty one; run `kit ingest PATH --index {folder}`."


@contextmanager
def _guarded(folder: Path, wait: float = 1.0) -> Iterator[None]:
    """The one writer's lock on a folder, and a `KitError` where the folder cannot be written."""
    from chromadb.errors import ChromaError
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "writer.lock", timeout=wait):
            yield
    except Timeout as error:
        raise KitError(f"Another process is writing to the index {folder}; wait until it is done.") from error
    except (OSError, sqlite3.Error, ChromaError) as error:
        raise KitError(
            f"The index {folder} cannot be opened or written ({error}); see that its disk has room and the folder is "
            "yours, then run the same command again, which goes on from there."
        ) from error
