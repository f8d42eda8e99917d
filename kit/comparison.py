"""A comparison, worked out line by line: what a small model cannot do at one glance.

Asked which of two towers is taller, with both heights before it, a model of 1.5 billion parameters takes the one that
is named first; asked whether a tower is in Paris, it says yes. So it first writes a line for each of the two, and then,
with nothing but these lines before it, follows worked examples: what the question's word means, the two values, the
answer. A yes or no about one thing is worked out from a statement about it. A difference is worked out from two values,
which have to stand where their things do: where nothing speaks of a tower, the model writes down a height all the same.
(Examples that show the steps: Wei et al., arXiv 2201.11903. What this brings: benchmarks/README.md, "Comparisons",
"Yes or no" and "Differences".)
"""

import re
from collections.abc import Sequence

from kit.evidence import numbers_of, words_of
from kit.messages import inert

WHICH, WHETHER, DIFFERENCE = "which", "whether", "difference"  # what a question wants

# "Was it built in 1880?", but not "Was it the oak or the elm?", "Can you tell me who did?", "Is it known who did?" or
# "Will Smith played which part?"
_WHETHER = re.compile(
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|may|might|must|should|will|would)\b(?! you\b)"
    r"(?!.*\b(?:or|(?:and|clear|explain|find|known|know|out|say|see|show|tell)(?: me| us)? "
    r"(?:what|which|who|whom|whose|when|where|why|how))\b|.*\b(?:what|which|who|whom|when|where|why|how)(?: \w+)?\?)",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(
    r"(?:\d{1,3}(?:[ \u00a0\u202f'’]\d{3}\b)+|\d+)(?:[.,]\d+)*(?: (?:thousand|million|billion|trillion)\b)?"
)
# How an answer begins; "No Country for Old Men" and "No. 303 Squadron" are names.
_YES_OR_NO = re.compile(r"(?:yes|no)(?=\s*$|[,;:!]|\.(?!\s*\d)|\s+(?:it|he|she|they|there|this|both)\b)", re.IGNORECASE)

LONGEST_FORM = 500  # characters of a question in which its form is looked for
_SENTENCE_END = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bSt)(?<!\b[A-Z])[.?!]\s+")

# "How many metres taller is it than the oak?", but not "How many had more than five?" or "How many before 1990?"
_DIFFERENCE = re.compile(
    r"\bby how (?:many|much)\b(?!.*\bto how (?:many|much)\b)|\bdifference in\b"
    r"|\bhow (?:many|much)\b.*\b(?!other\b|rather\b)(?:more|fewer|less|\w{2,}er)\b.*"
    r"(?<!other )(?<!rather )\bthan\b(?! (?:\d|one\b|two\b|three\b|four\b|five\b|ten\b|half\b))"
    r"|\bhow many \w+ (?:(?:passed|went by|lay|lie) between|(?:after|before|later|earlier)\b.*\b(?:did|was|were))\b",
    re.IGNORECASE | re.DOTALL,
)

SIDES = (
    "For each thing that the question compares, write one line: its name, a colon, and only what the passages state of "
    "it that the question is about."
)
VALUES = (
    "Do not answer yet. For each of the two things that the question compares, write one line: its name, a colon, and "
    "the number or date that the passages state of it."
)
RESULT, _UNKNOWN = "Answer: ", "unknown"  # how the last step of an example begins, and the end where there is none
_WHICH = (
    (
        "Ann: ran 12 km\nBo: ran 9 km",
        "Who ran farther, Ann or Bo?",
        "Farther means more. Of 12 (Ann) and 9 (Bo), 12 is more. Answer: Ann",
    ),
    (
        "Kim: born on 2 June 1990\nLou: born on 9 May 1984",
        "Who is older, Kim or Lou?",
        "Older means born earlier. Of 1990 (Kim) and 1984 (Lou), 1984 is earlier. Answer: Lou",
    ),
    (
        "the red one: 3 kg\nthe blue one: 7 kg",
        "Which bag is lighter, the red one or the blue one?",
        "Lighter means less. Of 3 (the red one) and 7 (the blue one), 3 is less. Answer: the red one",
    ),
    (
        "Sea: ended at 21:10\nSky: ended at 22:00",
        "Which film ended later, Sea or Sky?",
        "Later means after. Of 21:10 (Sea) and 22:00 (Sky), 22:00 is after. Answer: Sky",
    ),
    (
        "Nord: opened in 1911\nWest: opened in 1934",
        "Which shop opened first, Nord or West?",
        "First means earlier. Of 1911 (Nord) and 1934 (West), 1911 is earlier. Answer: Nord",
    ),
)
_ALIKE = (
    (
        "Lund: a town in Sweden\nOslo: the capital of Norway",
        "Are Lund and Oslo in the same country?",
        "Lund: Sweden. Oslo: Norway. These are two countries. Answer: no",
    ),
    (
        "Ada: studied law in Rome\nBen: studied law and history",
        "Did both Ada and Ben study law?",
        "Ada: law. Ben: law. So both did. Answer: yes",
    ),
    (
        "Ann: works in the mill\nBo: a baker",
        "Do Ann and Bo both work in the mill?",
        "Ann: the mill. Bo: a bakery. So only Ann does. Answer: no",
    ),
    (
        "Nord: opened in May 1934\nWest: opened in June 1934",
        "Was Nord opened in the same year as West?",
        "Nord: 1934. West: 1934. This is one year. Answer: yes",
    ),
)
_DIFFERENT = (
    (
        "2021: 31 boats\n2023: 44 boats",
        "How many more boats came in 2023 than in 2021?",
        "2023: 44. 2021: 31. 44 - 31 = 13. Answer: 13",
    ),
    (
        "Kim: born on 2 June 1990\nLou: born on 9 May 1984",
        "How many years older is Lou than Kim?",
        "Lou: 1984. Kim: 1990. 1990 - 1984 = 6. Answer: 6",
    ),
    (
        "Nord: opened in 1911\nWest: a shop in Lund",
        "How many years after Nord did West open?",
        f"West: not stated. {RESULT}{_UNKNOWN}",
    ),
    (
        "the old list: EUR 12.50 a bag\nthe new list: EUR 15.00 a bag",
        "By how much did a bag become dearer with the new list?",
        "The new list: 15.00. The old list: 12.50. 15.00 - 12.50 = 2.50. Answer: EUR 2.50",
    ),
)
_TRUE = (
    (
        "Mill: It is 40 metres high and was built by Ann Lee.",
        "Is the mill more than 30 metres high?",
        "It is 40 metres high. 40 is more than 30. Answer: yes",
    ),
    (
        "Bo: He was born in Lund and lived in Oslo.",
        "Was Bo born in Oslo?",
        "He was born in Lund. Lund is not Oslo. Answer: no",
    ),
    (
        "Kim: She wrote two plays, which were a success.",
        "Did Kim write plays?",
        "She wrote two plays. So she did. Answer: yes",
    ),
    (
        "Mill: It is 40 metres high and was built by Ann Lee.",
        "Was the mill built by Bo?",
        "It was built by Ann Lee. Ann Lee is not Bo. Answer: no",
    ),
    (
        "Nord: The shop opened in May 1934.",
        "Was Nord open in 1950?",
        "It opened in 1934. 1934 is before 1950. Answer: yes",
    ),
    (
        "West: The shop has 12 rooms, and guests may not smoke.",
        "Does West have more than 20 rooms?",
        "It has 12 rooms. 12 is less than 20. Answer: no",
    ),
)


def asks_whether(question: str) -> bool:
    """Whether `question` is to be answered by yes or no, as far as its English form tells."""
    return bool(_WHETHER.match(_SENTENCE_END.split(question.strip())[-1]))


def asks_difference(question: str) -> bool:
    """Whether `question` asks by how much two things differ, as far as its English form tells."""
    return bool(_DIFFERENCE.search(question[:LONGEST_FORM]))


def sides(said: str, question: str) -> list[str]:
    """The lines of `said` on things that `question` names: with ten passages before it, a model writes of others too.

    Pablo Neruda has a word in common with Pablo Picasso, but none of his own with a question about the latter.
    """
    lines = [line.strip() for line in re.split(r"[\n;]+", said)]
    named = {line: words_of(line.partition(": ")[0]) & words_of(question) for line in lines if ": " in line}
    return [line for line, words in named.items() if words and not any(words < others for others in named.values())]


def is_yes_or_no(answer: str) -> bool:
    """Whether `answer` begins with yes or no."""
    return bool(_YES_OR_NO.match(answer))


def kind_of(question: str, answer: str) -> str:
    """What `question` wants, which a model at first sight answered with `answer`: a difference, a yes or no, a choice.

    "Was it the oak or the elm?" wants a choice also where the answer was yes.
    """
    if asks_difference(question):
        return DIFFERENCE
    offered = re.search(r"\bor\b", question, re.IGNORECASE)
    return WHETHER if is_yes_or_no(answer) and not offered else WHICH


def unstated(lines: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether one of `lines` gives a number that no text has which speaks of its thing.

    A model that finds no height of a tower writes the one that it remembers, or that of another tower. A text that
    speaks of a thing has more than half of the words of its name.
    """
    held = [(words_of(text), _plain_numbers(text)) for text in texts]
    for name, _, value in (line.partition(": ") for line in lines):
        named, numbers = words_of(name), _plain_numbers(value)
        if not any(len(named & words) > len(named) / 2 and numbers <= stated for words, stated in held):
            return True
    return False


def _plain_numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in numbers_of(text)}


def messages(lines: str, question: str, kind: str) -> list[dict]:
    """The messages that ask for the answer to `question` from `lines` alone, after examples of the same `kind`.

    A choice or a difference has a line for each of two things, a yes or no has one line or several. The examples come
    first, as they stay the same.
    """
    examples = {WHICH: _WHICH, DIFFERENCE: _DIFFERENT, WHETHER: _ALIKE if "\n" in lines else _TRUE}[kind]
    shown = []
    for told, asked, steps in examples:
        shown += [_asked(told, asked), {"role": "assistant", "content": steps}]
    return [*shown, _asked(lines, question)]


def result(steps: str, question: str) -> str:
    """The answer at the end of `steps`, or the yes or no that they begin with, or "" where they come to none.

    Asked how many metres it is, it is a number alone ("11.3 million" is one): `question` has the unit.
    """
    said = _YES_OR_NO.match(steps)
    answer = steps.partition(RESULT)[2].partition("\n")[0].strip(" .*") or (said[0] if said else "")
    if answer.casefold().startswith(_UNKNOWN):
        return ""
    number = _NUMBER.search(answer) if re.search(r"\bhow many\b", question, re.IGNORECASE) else None
    return number[0] if number else answer


def _asked(lines: str, question: str) -> dict:
    return {"role": "user", "content": inert(f"{lines}\nQuestion: {question}")}
