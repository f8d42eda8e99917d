"""The index by words, beside Chroma's by meaning: which chunks share a query's words, and which stand beneath a name.

Tantivy keeps it (https://github.com/quickwit-oss/tantivy), in a folder of its own. It passes over the chunks that
cannot be among the best (block-max WAND: Ding and Suel, SIGIR 2011), so that common words cost little.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tantivy

from kit.corpus import Chunk, title

FOLDER = "words"
HEADED = 1_000  # chunks beneath one name that are looked at
UNWRITTEN = 15_000_000  # bytes that wait for a commit; Tantivy takes no less
STEMMED = "stemmed"


class Words:
    """The index by words in `folder`, which is made where there is none. Many may read it while one writes.

    Every method raises `OSError` for what Tantivy cannot read or write.
    """

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self._analyzer = _analyzer()
        self._writer: tantivy.IndexWriter | None = None
        with _as_os_error():
            self._index = tantivy.Index(_schema(), path=str(folder), reuse=True)
        self._index.register_tokenizer(STEMMED, self._analyzer)

    def count(self) -> int:
        """Chunks in the index, as of the last commit."""
        return self._searcher().num_docs

    def match(self, query: str, n: int) -> list[str]:
        """Ids of the `n` chunks that share the most telling words with `query`, best first.

        The order is that of BM25 over stemmed words without accents; a chunk that shares no word is not among them.
        """
        words = dict.fromkeys(self._analyzer.analyze(_composed(query)))
        return self._best([tantivy.Query.term_query(self._index.schema, "text", word) for word in words], n)

    def beneath(self, names: Iterable[str]) -> dict[str, str]:
        """Ids of the chunks that stand beneath one of `names`, and beneath which; names are as `bare` writes them."""
        terms = {name: tantivy.Query.term_query(self._index.schema, "heading", name) for name in names}
        return {id: name for name, term in terms.items() for id in self._best([term], HEADED)}

    def put(self, chunks: Iterable[Chunk]) -> None:
        """Add `chunks`, each in the place of the one that has its id; they are found from the next `commit` on."""
        for chunk in chunks:
            self.delete([chunk.id])
            heading, text = bare(title(chunk.source)), _composed(chunk.searched)
            with _as_os_error():
                self._writing().add_document(tantivy.Document(id=chunk.id, heading=heading, text=text))

    def delete(self, ids: Iterable[str]) -> None:
        """Take out the chunks with these ids, from the next `commit` on."""
        with _as_os_error():
            for id in ids:
                self._writing().delete_documents_by_term("id", id)

    def clear(self) -> None:
        """Take out all chunks, from the next `commit` on."""
        with _as_os_error():
            self._writing().delete_all_documents()

    def commit(self) -> None:
        """Write what was put and deleted, all of it or nothing."""
        if self._writer:
            with _as_os_error():
                self._writer.commit()

    def finish(self) -> None:
        """Let the next writer write; what was not committed is dropped."""
        writer, self._writer = self._writer, None
        if writer:
            with _as_os_error():
                writer.wait_merging_threads()

    def _writing(self) -> tantivy.IndexWriter:
        self._writer = self._writer or self._index.writer(UNWRITTEN, num_threads=1)
        return self._writer

    def _best(self, terms: list[tantivy.Query], n: int) -> list[str]:
        either = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        searcher = self._searcher()
        with _as_os_error():
            found = searcher.search(either, n, count=False).hits
            scored = [(-score, searcher.doc(place)["id"][0]) for score, place in found]
        return [id for _, id in sorted(scored)]  # ties always in the same order

    def _searcher(self) -> tantivy.Searcher:
        with _as_os_error():
            self._index.reload()  # another process may have written
        return self._index.searcher()


def bare(heading: str) -> str:
    """The words of a source's heading in small letters, without what stands in brackets at its end."""
    return " ".join(split(re.sub(r"\s*\([^()]*\)$", "", heading))).lower()


def split(text: str) -> list[str]:
    """The words of `text`."""
    return re.findall(r"\w+", _composed(text))


def _composed(text: str) -> str:
    """`text` with each letter and its accent as one sign, in whatever form they came."""
    return unicodedata.normalize("NFC", text)


def _schema() -> tantivy.Schema:
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_text_field("heading", tokenizer_name="raw", index_option="basic")
    schema.add_text_field("text", tokenizer_name=STEMMED, index_option="freq")
    return schema.build()


def _analyzer() -> tantivy.TextAnalyzer:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase())
    return builder.filter(tantivy.Filter.ascii_fold()).filter(tantivy.Filter.stemmer("english")).build()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Tantivy raises `ValueError` for a full disk as for a broken file."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"the index by words: {error}") from error
