"""What counts as standing in a passage."""

import pytest
from fakes import hit

from kit.evidence import citation_of, find_quote


def test_line_breaks_do_not_break_a_quote_and_the_passages_own_words_are_given():
    assert find_quote("The rent is 48,000\n  euros", "rent is 48,000euros") == "rent is 48,000 euros"
    assert find_quote("The rent is 48,000 euros", "rent is 84,000 euros") == ""
    assert find_quote("The rent", " ") == ""
    assert find_quote("… until then, a diver cut it.", '"A diver cut it. "') == "a diver cut it"
    assert find_quote("Straße 5", "STRASSE 5") == "Straße 5"


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("The tenant’s rent, 1990–1995", "the tenant's rent, 1990-1995"),
        ("It is called “The Oak” there", 'called "the oak" there'),
        ("a long\u00adish zero\u200bwidth word", "longish zerowidth word"),
    ],
)
def test_signs_that_print_alike_are_alike(text, quote):
    assert find_quote(text, quote) and find_quote(text, quote) in text


def test_a_short_quote_is_cited_where_it_stands_by_itself():
    hits = [hit("a", "It opened in 2012."), hit("b", "It has 12 rooms.", "b.txt")]
    assert citation_of("12", hits).id == "b" and citation_of("has 12", hits).id == "b"
    assert citation_of("120", hits) is None


@pytest.mark.parametrize(
    ("text", "quote", "found"),
    [
        ("She came from Europe.", "Rome", ""),
        ("She came from Europe to Rome.", "Rome", "Rome"),
        ("A woman, a climate", "Oman", ""),
        ("It was in Germany.", "German", "German"),
        ("It cost 11,200 euros.", "1,200", ""),
        ("It cost 1,200 euros.", "1,20", ""),
        ("It cost EUR1,200.", "1,200", "1,200"),
        ("The fine is 1,200 euros.", "200 euros", ""),
        ("The rate is 2.5 percent.", "5 percent", ""),
        ("A bag costs EUR 12.50.", "EUR 12", ""),
        ("It fell from 1,200 to 12. Then it ended.", "12", "12"),
        ("她住在北京市。", "北京市", "北京市"),
        ("Rome", "Rome", "Rome"),
    ],
)
def test_a_short_answer_does_not_stand_inside_another_word(text, quote, found):
    assert find_quote(text, quote, whole=True) == found
    assert find_quote(text, quote), "where many words are quoted the first may be a part"
