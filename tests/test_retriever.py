"""The thin layer between the index and those who search."""

import pytest

from kit.config import KitError
from kit.index import Index
from kit.retriever import Hit, Retriever


@pytest.fixture
def retriever(tmp_path, embedder):
    (tmp_path / "a.txt").write_text("An owl hunts by night.")
    (tmp_path / "b.txt").write_text("A comet has a tail.")
    with Index.create(tmp_path / "index", embedder, 200, 20) as index:
        index.ingest([tmp_path])
        yield Retriever(index)


def test_hits(retriever):
    first, second = retriever.search("night owl", 5)
    assert isinstance(first, Hit) and len(first.id) == 32
    assert (first.source, first.page, first.text) == ("a.txt", None, "An owl hunts by night.")
    assert first.score > second.score
    assert retriever.search("night owl", 1) == [first]  # the same question, the same passages


def test_the_seconds_add_up(retriever):
    assert retriever.seconds == 0
    retriever.search("owl", 1)
    once = retriever.seconds
    retriever.search("owl", 1)
    assert 0 < once < retriever.seconds


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query(retriever, query):
    with pytest.raises(KitError, match="The query is empty"):
        retriever.search(query, 1)


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one(retriever, k):
    with pytest.raises(KitError, match="give a k of 1 or more"):
        retriever.search("owl", k)


def test_a_query_of_100000_characters(retriever):
    assert retriever.search("owl " * 25_000, 1)[0].source == "a.txt"
