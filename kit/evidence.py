"""What in the passages states an answer: quotes found word for word, and statements told in other words.

A model that quotes changes white space, capitals and marks, and a small one retells. Nothing here asks a model.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kit.retriever import Hit, joined, pages

MARKS = ".…,;:?!()\"'“”‘’"  # around words, and no part of them
TOLD = 0.7  # share of a quote's words that must be exceeded, where they do not stand in one piece
SHORTEST_SURE = 3  # words of a quote below which it may stand within other words
SHORTEST_QUOTE = 4  # characters of an answer that supports itself: "no" and "2" stand everywhere
# Signs that print alike or not at all: a model writes the plain one.
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("’‘‛", "'"),
        **dict.fromkeys("“”„«»", '"'),
        **dict.fromkeys("–—‐‑−", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\ufeff", " "),
    }
)


@dataclass(frozen=True)
class Citation:
    """A quote that stands word for word in what was read of `source` (`page` from 1, or None).

    `id` is that of the best passage of the page.
    """

    id: str
    source: str
    page: int | None
    quote: str


def find_quote(text: str, quote: str, whole: bool = False) -> str:
    """The passage's own words where `quote` stands in `text` word for word, "" where it does not.

    White space, capitals, the form of dashes and apostrophes, and the marks around a quote do not count: text from a
    PDF breaks its lines anywhere, and a model that quotes starts a sentence with a capital and ends it with a full
    stop.
    `whole` is for a quote of a word or two: "Rome" does not begin inside "from Europe", nor 1,200 in 11,200.
    """
    text = unicodedata.normalize("NFKC", text)
    plain = enumerate(text.translate(_ALIKE))
    signs = [(place, small) for place, sign in plain for small in sign.casefold() if not small.isspace()]
    wanted = "".join(unicodedata.normalize("NFKC", quote).translate(_ALIKE).casefold().split()).strip(MARKS)
    for found in re.finditer(f"(?={re.escape(wanted)})", "".join(small for _, small in signs)) if wanted else ():
        first, last = signs[found.start()][0], signs[found.start() + len(wanted) - 1][0]
        if not (whole and _torn(text, first, last)):
            return " ".join(text[first : last + 1].split())
    return ""


def _torn(text: str, first: int, last: int) -> bool:
    """Whether the piece from `first` to `last` begins inside a word or number of `text`, or ends inside a number.

    Where a word begins cannot be seen in scripts without capitals, such as Chinese.
    """
    begin, end = text[first - 1 : first + 1] if first else "", text[last : last + 2]
    around = text[max(0, first - 2) : first + 1], text[last : last + 3]
    if any(re.fullmatch(r"\d[.,]\d", piece) for piece in around):
        return True  # 200 in 1,200, 12 in 12.50
    letters = all(sign.lower() != sign.upper() for sign in begin)
    return (len(begin) == 2 and (letters or begin.isdigit())) or (len(end) == 2 and end.isdigit())


def citation_of(quote: str, hits: Sequence[Hit], line: bool = False) -> Citation | None:
    """The first page on which `quote` stands, with its words there, or, of an answer, with the `line` that holds it."""
    for page in pages(hits):
        text = joined(page)
        if words := find_quote(text, quote, whole=line or len(words_of(quote)) < SHORTEST_SURE):
            if line:
                words = next((row.strip() for row in text.splitlines() if find_quote(row, quote, whole=True)), words)
            return Citation(page[0].id, page[0].source, page[0].page, words)
    return None


def retold(quotes: Sequence[str], question: str, hits: Sequence[Hit]) -> list[Citation]:
    """What the passages state where `quotes` tell it in other words, each with a number that the question has not.

    Small models quote from memory: "the hut counted 1,619 nights" for "In 2023 it counted 1,619 nights". A line, a
    sentence or two is meant where it has all numbers of the quote and, together with its source's name, most words.
    """
    known = numbers_of(question)
    quotes = [quote for quote in quotes if numbers_of(quote) - known]
    stated = _stated(hits) if quotes else []
    return [meant for quote in quotes if (meant := _meant(quote, stated))]


def nearest_statements(quotes: Sequence[str], question: str, hits: Sequence[Hit]) -> list[Citation]:
    """For each quote the statement of the passages, with its source's name, that has the most of its words.

    Where none has any ("Yes" is in no passage), that which has the most of the question's.
    """
    stated = _stated(hits)
    every = set().union(*(words for _, words in stated))
    wanted = [words_of(quote) & every or words_of(question) for quote in quotes]
    return [max(stated, key=lambda pair: len(words & pair[1]))[0] for words in wanted if stated]


def nearest_page(question: str, hits: Sequence[Hit]) -> list[Hit]:
    """The passages of the page with the statement nearest to `question`: to ten of them a small model says yes."""
    ids = {citation.id for citation in nearest_statements([question], question, hits)}
    return [hit for page in pages(hits) if page[0].id in ids for hit in page]


def _stated(hits: Sequence[Hit]) -> list[tuple[Citation, set[str]]]:
    """Each statement of the passages, and the words of it and of its source's name."""
    return [
        (Citation(page[0].id, page[0].source, page[0].page, " ".join(statement.split())), words | named)
        for page in pages(hits)
        for named in [words_of(page[0].source)]
        for statement in _statements(joined(page))
        if (words := words_of(statement))
    ]


def _meant(quote: str, stated: Sequence[tuple[Citation, set[str]]]) -> Citation | None:
    """The statement, of those that have every number of `quote`, that has the most of its words and enough of them."""
    wanted, numbers = words_of(quote), numbers_of(quote)
    shared = [(len(wanted & words), meant) for meant, words in stated if numbers <= words]
    most, meant = max(shared, key=lambda pair: pair[0], default=(0, None))
    return meant if most > TOLD * len(wanted) else None


def _statements(text: str) -> list[str]:
    """The lines of `text`, its sentences, and each two sentences that follow each other; the shorter ones first."""
    found = set(text.splitlines())
    for block in re.split(r"\n…\n|\n\s*\n", text):
        sentences = re.split(r"(?<=[.!?])\s+", block)
        found.update(sentences, map(" ".join, pairwise(sentences)))
    return sorted(found, key=lambda statement: (len(statement), statement))


def words_of(text: str) -> set[str]:
    """The words and numbers of `text` in lower case; "1,619" and "0.5" are one each."""
    return set(re.findall(r"[^\W_]+(?:[.,]\d+)*", unicodedata.normalize("NFKC", text).casefold()))


def numbers_of(text: str) -> set[str]:
    """Those of its words that begin with a digit."""
    return {word for word in words_of(text) if word[0].isdigit()}


def word_for_word(answer: str, question: str, hits: Sequence[Hit]) -> list[Citation]:
    """Citations of the lines in which all that `answer` adds to `question` stands word for word, or none."""
    found = []
    for part in re.split(r"[,;]\s+|\s+and\s+", answer):
        for run in _added(part, question):
            if len(run) < SHORTEST_QUOTE or not (citation := citation_of(run, hits, line=True)):
                return []
            found.append(citation)
    return found


def _added(part: str, question: str) -> list[str]:
    """The runs of words in `part` that the question does not have; all of `part` where it has every one.

    "Ada Finch signed the lease", asked who signed the lease, adds "Ada Finch". Words like "is" and
    "it" at the ends of a run add nothing.
    """
    known = {word.strip(MARKS).casefold() for word in question.split()}
    runs: list[list[str]] = [[]]
    for word in part.split():
        if word.strip(MARKS).casefold() in known:
            runs.append([])
        else:
            runs[-1].append(word)
    for run in runs:
        for end in (0, -1):
            while run and len(run[end]) < 3 and run[end].isalpha():
                run.pop(end)
    return [" ".join(run).strip(MARKS) for run in runs if run] or [part.strip()]
