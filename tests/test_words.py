"""The index by words, over Tantivy itself."""

import resource

import pytest

from kit.corpus import Chunk
from kit.words import Words, bare

TEXTS = {
    "owls": "Owls hunt at night.",
    "tides": "The tides rise twice a day, day and night.",
    "bread": "Rye bread is baked for an hour.",
    "cafe": "The cafe\u0301 of Zofia Wi\u015bniewska opens at nine.",
}


def chunk(id: str, text: str, source: str = "") -> Chunk:
    return Chunk(id, "f.jsonl", source or id.capitalize(), None, text, 0)


@pytest.fixture
def words(tmp_path):
    found = Words(tmp_path / "words")
    found.put(chunk(*item) for item in TEXTS.items())
    found.commit()
    yield found
    found.finish()


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("an owl hunting", "owls"),
        ("BREAD?", "bread"),
        ("the day", "tides"),
        ("caf\u00e9", "cafe"),  # as one sign, in the text as two
        ("wisniewska", "cafe"),
        ('what is "rye" AND (not:', "bread"),  # nothing in a question is syntax
    ],
)
def test_the_chunk_with_the_most_telling_words_is_first(words, query, best):
    assert words.match(query, 3)[0] == best


@pytest.mark.parametrize("query", ["", "?!", "zebra", "\0"])
def test_a_query_without_a_known_word_finds_nothing(words, query):
    assert words.match(query, 3) == []


def test_no_more_are_found_than_were_asked_for(words):
    assert len(words.match("night", 5)) == 2 and len(words.match("night", 1)) == 1


def test_chunks_that_match_alike_come_in_the_order_of_their_ids(words):
    words.put(chunk(id, "The same gull.") for id in ("g2", "g1", "g3"))
    words.commit()
    assert words.match("gull same", 9) == ["g1", "g2", "g3"]


def test_the_title_is_searched_with_its_text(words):
    words.put([chunk("x", "It is 40 euros.", "travel policy v2")])
    words.commit()
    assert words.match("travel policies", 1) == ["x"]


def test_a_chunk_replaces_the_one_with_its_id(words):
    words.put([chunk("owls", "Herons fish by day.")])
    words.commit()
    assert words.count() == 4 and words.match("herons", 1) == ["owls"] and "owls" not in words.match("hunt night", 9)


def test_what_was_not_committed_is_nowhere(words, tmp_path):
    words.put([chunk("heron", "Herons fish.")])
    words.delete(["owls"])
    other = Words(tmp_path / "words")
    assert other.match("herons", 9) == [] and other.match("owls", 9) == ["owls"]
    words.finish()
    words.commit()
    assert other.match("herons", 9) == [] and other.count() == 4


def test_a_reader_sees_what_another_wrote(words, tmp_path):
    reader = Words(tmp_path / "words")
    assert reader.match("herons", 9) == []
    words.put([chunk("heron", "Herons fish.")])
    words.delete(["owls"])
    words.commit()
    assert reader.match("herons", 9) == ["heron"] and reader.match("owls", 9) == []
    words.clear()
    words.commit()
    assert reader.count() == 0 and reader.match("herons", 9) == []


def test_a_second_writer_is_refused_until_the_first_has_finished(words, tmp_path):
    second = Words(tmp_path / "words")
    with pytest.raises(OSError, match="index by words"):
        second.put([chunk("heron", "Herons fish.")])
    words.finish()
    second.put([chunk("heron", "Herons fish.")])
    second.commit()
    second.finish()
    assert words.match("herons", 9) == ["heron"]


def test_a_broken_file_is_an_os_error(words, tmp_path):
    (tmp_path / "words" / "meta.json").write_text("{")
    with pytest.raises(OSError, match="index by words"):
        Words(tmp_path / "words")


def test_names_are_found_whole_and_without_what_stands_in_brackets(words):
    words.put([chunk("film", "A film.", "Toy Story 3 (film)"), chunk("toy", "A toy.", "Toy\nStory 30")])
    words.commit()
    assert words.beneath(["toy story 3", "toy", "owls"]) == {"film": "toy story 3", "owls": "owls"}
    assert words.beneath(["toy story 30"]) == {"toy": "toy story 30"}
    assert words.beneath([]) == {}


@pytest.mark.parametrize(
    ("heading", "name"),
    [("Toy Story 3 (film)", "toy story 3"), ("McDonald's", "mcdonald s"), ("Cafe\u0301", "caf\u00e9"), ("(x)", "")],
)
def test_bare(heading, name):
    assert bare(heading) == name


def test_a_full_disk_is_an_os_error_and_loses_nothing(words, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # as little as a disk has left
    many = [chunk(str(n), f"Word{n} and {'more ' * 40}") for n in range(2_000)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        with pytest.raises(OSError, match="index by words"):
            words.put(many)
            words.commit()
        words.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert words.count() == 4
    words.put(many)
    words.commit()
    assert words.count() == 2_004
