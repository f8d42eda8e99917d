"""Search the index, and keep the time that it takes."""

import time
from dataclasses import dataclass

from kit.config import KitError
from kit.index import Index


@dataclass(frozen=True)
class Hit:
    """A passage that was found; `score` is the cosine similarity to the query, `page` counts from 1."""

    id: str
    source: str
    page: int | None
    score: float
    text: str


class Retriever:
    """Dense retrieval over one index. `seconds` is what all its searches took, embedding the query included."""

    def __init__(self, index: Index):
        self.index = index
        self.seconds = 0.0

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` passages nearest to `query`, best first; fewer where the index has fewer.

        Raises `KitError` for an empty query and for `k` below 1.
        """
        if not query.strip():
            raise KitError("The query is empty; say what to search for.")
        if k < 1:
            raise KitError(f"{k} passages cannot be searched for; give a k of 1 or more.")
        started = time.perf_counter()
        hits = [Hit(*row) for row in self.index.search(query, k)]
        self.seconds += time.perf_counter() - started
        return hits
