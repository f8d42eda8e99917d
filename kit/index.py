"""Embed chunks and keep them in Chroma; refuse an index that other settings built.

How files get in is in `kit.ingest`. Not known here: more than one collection in a folder, and
vectors that do not fit in memory, where Chroma keeps all of them while an index is open.
"""

import hashlib
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kit.config import KitError
from kit.ingest import MANIFEST, Ingest
from kit.words import FOLDER, Words, bare, split

if TYPE_CHECKING:
    import numpy as np

COLLECTION = "chunks"
FORMAT = 3  # raised whenever what is embedded or how it is kept changes
THOROUGH = 400  # candidates that HNSW keeps while it searches; with Chroma's 100 even a small index misses some
SHORTEST_NAME, LONGEST_NAME = 4, 8  # characters, words; shorter names are also common words ("It")
NAMESAKES = 3  # sources of one name; a name that more have (overview.md, index.html) leads to none of them

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
            self._words = Words(folder / FOLDER)
        except (KitError, OSError):
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
        if index.count() == 0 or index._words.count() == 0:
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

    def fingerprint(self) -> str:
        """A sum over what is indexed and how: the same files, cut and embedded in the same way, have the same."""
        with self._reading(), closing(sqlite3.connect(self.folder / MANIFEST)) as manifest:
            files = manifest.execute("select source, sha256 from files order by source, sha256").fetchall()
        built = sorted(self._collection.metadata.items())
        return hashlib.sha256(repr((built, files)).encode()).hexdigest()[:12]

    def search(self, query: str, k: int) -> list[Row]:
        """The `k` nearest chunks, best first; the score is the cosine similarity.

        Raises `KitError`, as all that reads here does, where another process changed the index meanwhile or broke it.
        """
        with self._reading():
            found = self._collection.query(
                query_embeddings=self.embed([query], is_query=True),
                n_results=k,
                include=["documents", "metadatas", "distances"],
            )
        ids, metadatas, distances, texts = (found[name][0] for name in ("ids", "metadatas", "distances", "documents"))
        return _nearest_first(_rows(ids, metadatas, [min(1.0, 1.0 - distance) for distance in distances], texts))

    def match(self, query: str, n: int) -> list[str]:
        """Ids of the `n` chunks that share the most telling words with `query`, best first; see `Words.match`."""
        with self._reading():
            return self._words.match(query, n)

    def named(self, text: str, query: str, k: int, known: str = "", apart: str = "") -> list[Row]:
        """Of the sources whose name stands in `text`, with its capitals, the `k` chunks nearest to `query`.

        The name of a file is what `corpus.title` makes of it; what stands in brackets behind a name is no part of it.
        Names that stand in `known` do not count, nor the source `apart`, nor names that many sources have.
        """
        names = {name for name in _names(text) if f" {name} " not in f" {bare(known)} "}
        with self._reading():
            headings = self._words.beneath(names)
            if not headings:
                return []
            found = self._collection.get(ids=list(headings), include=["embeddings", "documents", "metadatas"])
        vectors, (wanted,) = found["embeddings"], self.embed([query], is_query=True)  # all of length 1
        scores = [min(1.0, float(vector @ wanted)) for vector in vectors]
        rows = _rows(found["ids"], found["metadatas"], scores, found["documents"])
        sources = defaultdict(set)
        for id, source, *_ in rows:
            sources[headings[id]].add(source)
        telling = [row for row in rows if row[1] != apart and len(sources[headings[row[0]]]) <= NAMESAKES]
        return _nearest_first(telling)[:k]

    def get(self, ids: list[str]) -> list[Row]:
        """The chunks with these ids, in any order, as `search` returns them; the score is 0."""
        return self._held(0.0, ids=ids)

    def passages(self, source: str, page: int | None = None) -> list[Row]:
        """Every chunk of a source, or of one page of it, as `search` returns them; the score is 1."""
        return self._held(
            1.0, where={"source": source} if page is None else {"$and": [{"source": source}, {"page": page}]}
        )

    def _held(self, score: float, **which) -> list[Row]:
        with self._reading():
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
            Ingest(self.folder, self._collection, self._words, self._client.get_max_batch_size(), self.embed) as run,
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

    @contextmanager
    def _reading(self) -> Iterator[None]:
        from chromadb.errors import ChromaError

        try:
            yield
        except (ChromaError, sqlite3.Error, OSError) as error:
            raise KitError(
                f"The index {self.folder} cannot be read ({error}); where another process wrote to it meanwhile, "
                "start again, else delete it and run `kit ingest` again."
            ) from error

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
    cosine = {"hnsw": {"space": "cosine", "ef_search": THOROUGH}}
    return client, client.get_or_create_collection(
        COLLECTION, embedding_function=None, configuration=cosine, metadata=settings
    )


def _rows(ids, metadatas, scores, texts) -> list[Row]:
    columns = zip(ids, metadatas, scores, texts, strict=True)
    return [(i, m["source"], m.get("page"), score, text, m["start"]) for i, m, score, text in columns]


def _nearest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row[3], row[0]))  # ties always in the same order


def _names(text: str) -> set[str]:
    """What in `text` may be a name, as `bare` writes it: "Toy Story 3", "The Remains of the Day", "McDonald's".

    These are runs of words with a capital among them, each end of which has a capital or is a number.
    """
    words = split(text)
    ends = [word[0].isupper() or word[0].isdigit() for word in words]
    names = set()
    for start in (place for place, end in enumerate(ends) if end):
        for stop in range(start, min(start + LONGEST_NAME, len(words))):
            run = words[start : stop + 1]
            if (ends[stop] or run[-1] == "s") and any(word[0].isupper() for word in run):
                names.add(" ".join(run).lower())
    return {name for name in names if len(name) >= SHORTEST_NAME}


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
