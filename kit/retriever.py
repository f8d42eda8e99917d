"""Search the index by meaning and by words, fuse the two rankings, and keep the time that it takes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kit.config import KitError
from kit.index import Index, Row

CANDIDATES = 50  # passages of each ranking that are fused
FLATNESS = 20  # the larger, the less the first ranks count; the paper's 60 is for fusing many rankings


@dataclass(frozen=True)
class Hit:
    """A passage that was found; `page` counts from 1, `start` is its first character's place in the page.

    `score` is in 0 to 1, higher is better.
    From a hybrid search the score is 1 for a passage that is first by meaning and by words, from a
    dense one it is the cosine similarity to the query, which is kept in `similarity` in both cases
    (None for a passage that was found by its words alone).
    """

    id: str
    source: str
    page: int | None
    score: float
    text: str
    start: int = 0
    similarity: float | None = None


class NotIndexed(KitError):
    """The index holds nothing of a source, or of a page of it."""


class Retriever:
    """Retrieval over one index. `seconds` is what all its searches took, embedding the query included.

    `hybrid` fuses dense retrieval with BM25 by reciprocal ranks (Cormack et al., SIGIR 2009): names and
    numbers are found by their words, the rest by its meaning.
    """

    def __init__(self, index: Index, hybrid: bool = True):
        self.index, self.hybrid = index, hybrid
        self.seconds = 0.0

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best passages for `query`, best first; fewer where the index has fewer.

        Raises `KitError` for an empty query and for `k` below 1.
        """
        query = whole(query)
        if not query.strip():
            raise KitError("The query is empty; say what to search for.")
        if k < 1:
            raise KitError(f"{k} passages cannot be searched for; give a k of 1 or more.")
        started = time.perf_counter()
        hits = _once(self._fused(query, 2 * k) if self.hybrid else self._near(query, 2 * k))[:k]
        self.seconds += time.perf_counter() - started
        return hits

    def follow(self, query: str, k: int) -> tuple[list[Hit], list[Hit]]:
        """What to read first, of the best document and one that it or the query names; and `k` passages with these.

        "The Remains of the Day is a novel by Kazuo Ishiguro" leads to the document of that name, which a question
        about the novel's author need not resemble. Of documents that are named by their titles the one with the
        passage nearest to the query is read first; a third of `k` at most is of it, a third of the best document, then
        come the nearest passages of all that are named, then the next best. Where none is named, the best document is
        read first alone. (Documents reached by links: Asai et al., arXiv 1911.10470.)
        """
        hits = self.search(query, k)
        part = k // 3
        if not hits or not part:
            return [], hits
        best = [hit for hit in hits if hit.source == hits[0].source][:part]
        named = self._named("\n".join([query, *(hit.text for hit in best)]), query, k, apart=hits[0].source)
        first = [*best, *[hit for hit in named if hit.source == named[0].source][:part]]
        return first, _once([*first, *named[:part], *hits])[:k]

    def about(self, answer: str, query: str, k: int) -> list[Hit]:
        """The `k` passages nearest to `query` of the documents that `answer` names and `query` does not."""
        return _once(self._named(answer, query, k, known=query))

    def _named(self, text: str, query: str, k: int, **but: str) -> list[Hit]:
        started = time.perf_counter()
        hits = _alike(self.index.named(text, query, k, **but))
        self.seconds += time.perf_counter() - started
        return hits

    def _near(self, query: str, k: int) -> list[Hit]:
        return _alike(self.index.search(query, k))

    def _fused(self, query: str, k: int) -> list[Hit]:
        found = {hit.id: hit for hit in self._near(query, max(k, CANDIDATES))}
        scores: dict[str, float] = {}
        for ranking in (found, self.index.match(query, max(k, CANDIDATES))):
            for rank, id in enumerate(ranking):
                scores[id] = scores.get(id, 0.0) + FLATNESS / (FLATNESS + rank) / 2
        best = sorted(scores, key=lambda id: (-scores[id], id))[:k]
        if unknown := [id for id in best if id not in found]:
            found |= {row[0]: Hit(*row) for row in self.index.get(unknown)}
        return [replace(found[id], score=scores[id]) for id in best if id in found]

    def passages(self, sources: Iterable[dict]) -> list[Hit]:
        """All that the index holds of `sources`, dicts with `source` and perhaps `page`, in their order.

        Raises `NotIndexed` for one that is not in the index.
        """
        found: list[Hit] = []
        for place in sources:
            rows = self.index.passages(place["source"], place.get("page"))
            if not rows:
                where = cite(place["source"], place.get("page"))
                raise NotIndexed(f"{where} is not in the index {self.index.folder}; ingest it, or mend the question.")
            found += [Hit(*row) for row in rows]
        return _once(found)

    def documents(self, query: str, k: int, n: int) -> list[Hit]:
        """Parent-document retrieval: the first `n` documents that have a passage among the `k` best, whole.

        Passages are small, so that they are found; what is read is the document. `id`, `score` and
        `start` are those of its best passage, `page` is None. Raises what `search` raises.
        """
        best: dict[str, Hit] = {}
        for hit in self.search(query, k):
            best.setdefault(hit.source, hit)
        return [replace(hit, page=None, text=self._whole(hit.source)) for hit in list(best.values())[:n]]

    def _whole(self, source: str) -> str:
        found = sorted(self.passages([{"source": source}]), key=lambda hit: hit.page or 0)
        return "\n\n".join(joined(page) for page in pages(found))


def _alike(rows: Iterable[Row]) -> list[Hit]:
    """Hits of rows whose score is their cosine similarity to the query."""
    return [Hit(*row, similarity=row[3]) for row in rows]


def _once(hits: Iterable[Hit]) -> list[Hit]:
    """Each passage once: an index may hold the same file twice, say from two checkouts."""
    found: dict[tuple, Hit] = {}
    for hit in hits:
        found.setdefault((hit.source, hit.page, hit.start, hit.text), hit)
    return list(found.values())


def pages(hits: Iterable[Hit]) -> list[list[Hit]]:
    """The passages of each page together, the page of the best passage first."""
    found: dict[tuple, list[Hit]] = {}
    for hit in hits:
        found.setdefault((hit.source, hit.page), []).append(hit)
    return list(found.values())


def joined(hits: Iterable[Hit]) -> str:
    """The text of passages of one page; neighbours become one text again, an ellipsis stands for what lies between.

    Rows of a .jsonl file may share a title, and so a page. Each passage follows the one that it continues.
    """
    runs: list[tuple[str, int]] = []  # a text, and where it ends on the page
    for hit in sorted(hits, key=lambda hit: hit.start):
        end = hit.start + len(hit.text)
        for n, (text, ended) in enumerate(runs):
            shared = ended - hit.start
            if 0 <= shared < len(hit.text) and text.endswith(hit.text[:shared]):
                runs[n] = (text + hit.text[shared:], end)
                break
            if -2 <= shared < 0:  # the splitter takes off white space, so such a gap is nothing but that
                runs[n] = (f"{text}\n{hit.text}", end)
                break
        else:
            runs.append((hit.text, end))
    return "\n…\n".join(text for text, _ in runs)


def whole(text: str) -> str:
    """`text` with a "?" for each half of a surrogate pair: terminals and models leave such, and none can read them."""
    return text.encode("utf-8", "replace").decode()


def cite(source: str, page: int | None) -> str:
    """A source and its page on one line, as a reader would cite it: the title of a .jsonl row is anybody's text."""
    source = " ".join(source.split())
    return f"{source}, page {page}" if page else source
