"""What a question wants, as far as its form tells, and what worked steps come to."""

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
        ("Can someone explain how it was built?", False),
        ("Is Dr. Finch on the board?", True),
        ("Will Finch played which part?", False),
        ("May Pen lies where?", False),
        ("Who built it?", False),
        ("Wasn't told", False),
        ("", False),
    ],
)
def test_a_question_for_yes_or_no_is_known_by_its_form(question, whether):
    assert comparison.asks_whether(question) is whether


@pytest.mark.parametrize(
    ("question", "difference"),
    [
        ("How many metres taller is the oak than the elm?", True),
        ("How much more did the second boat cost than the first?", True),
        ("By how many days was the visit moved?", True),
        ("What is the difference in height between the two?", True),
        ("How many years after the bridge was the tunnel opened?", True),
        ("How many goals had she scored before 1990?", False),
        ("How many days after the trip must it be claimed?", False),
        ("How many people earn more than 50,000 euros?", False),
        ("How many days of leave are there after more than five years?", False),
        ("How much does a guest other than a member pay?", False),
        ("By how many votes to how many was it adopted?", False),
        ("What is the difference between the two versions?", False),
        ("How many boats came in 2023?", False),
        ("Which is taller, the oak or the elm?", False),
        ("", False),
    ],
)
def test_a_question_for_a_difference_is_known_by_its_form(question, difference):
    assert comparison.asks_difference(question) is difference


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("Were there more boats in 2022 or in 2024?", "Yes", comparison.WHICH),
        ("Is it as old as the elm?", "Yes", comparison.WHETHER),
        ("It is as old as the elm?", "No, it is younger.", comparison.WHETHER),
        ("Which film won?", "No Country for Old Men", comparison.WHICH),
        ("Which squadron was it?", "No. 303 Squadron", comparison.WHICH),
        ("Which is older, the oak or the elm?", "the oak", comparison.WHICH),
        ("How much older is the oak than the elm?", "the oak", comparison.DIFFERENCE),
    ],
)
def test_a_yes_is_no_choice_between_two_things(question, answer, kind):
    assert comparison.kind_of(question, answer) == kind


@pytest.mark.parametrize(
    ("steps", "question", "answer"),
    [
        ("44 - 31 = 13. Answer: 13 boats.", "How many more boats came?", "13"),
        ("1,102.5 it is. Answer: -1,102.5 km", "By how many kilometres is it longer?", "1,102.5"),
        ("15.00 - 12.50 = 2.50. Answer: EUR 2.50", "By how much did it become dearer?", "EUR 2.50"),
        ("West: not stated. Answer: unknown", "How many years after Nord did West open?", ""),
        ("Answer: Unknown (West is not stated)", "How many years after Nord did West open?", ""),
        ("Answer: 11.3 million people", "How many more people live in A than in B?", "11.3 million"),
        ("Answer: 1 102 km", "How many kilometres longer is it?", "1 102"),
        ("Answer: 12 350 m", "How many metres longer is it?", "12 350"),
        ("Answer: **Ann**\nSo Ann ran farther.", "Who ran farther?", "Ann"),
        ("Yes, it is.", "Is it?", "Yes"),
        ("Nothing.", "Is it?", ""),
    ],
)
def test_the_answer_is_what_the_steps_end_in(steps, question, answer):
    assert comparison.result(steps, question) == answer


def test_a_value_has_to_stand_where_its_thing_does_however_it_is_written():
    texts = ["Oak Tower\nThe oak is 6190 metres high.", "Elm\nIt has 5,895 metres.", "Fir\nIt has 828 metres."]
    assert not comparison.unstated(["Oak Tower: 6,190 metres", "Elm: 5895"], texts)
    assert not comparison.unstated(["the oak: many boats"], texts), "there is no number"
    assert comparison.unstated(["Oak Tower: 6,190 metres", "Elm: 8,848 metres"], texts), "nothing has it"
    assert comparison.unstated(["Oak Tower: 6,190 metres", "CN Tower: 828 metres"], texts), "another has it"
