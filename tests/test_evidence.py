"""What counts as standing in a passage."""

import pytest

from kit.evidence import find_quote


def test_line_breaks_do_not_break_a_quote_and_the_passages_own_words_are_given():
    assert find_quote("The rent is 48,000\n  euros", "rent is 48,000euros") == "rent is 48,000 euros"
    assert find_quote("The rent is 48,000 euros", "rent is 84,000 euros") == ""
    assert find_quote("The rent", " ") == ""
    assert find_quote("… until then, a diver cut it.", '"A diver cut it. "') == "a diver cut it"
    assert find_quote("Straße 5", "STRASSE 5") == "Straße 5"


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
