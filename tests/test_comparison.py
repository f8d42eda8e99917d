"""Which questions are for yes or no."""

import pytest

from kit import comparison


@pytest.mark.parametrize(
    ("question", "whether"),
    [
        ("Was it built in 1880?", True),
        ("I was told that it leaks. Is that true?", True),
        ("Do I need a receipt when a meal costs less?", True),
        ("Is this the house where she was born?", True),
        ("Was it the oak or the elm?", False),
        ("Can you tell me who built it?", False),
        ("Is it known who built it?", False),
        ("Is there Wi-Fi on board, and what does it cost?", False),
        ("Who built it?", False),
        ("Wasn't told", False),
        ("", False),
    ],
)
def test_a_question_for_yes_or_no_is_known_by_its_form(question, whether):
    assert comparison.asks_whether(question) is whether
