"""A comparison, worked out line by line: what a small model cannot do at one glance.

Asked which of two towers is taller, with both heights before it, a model of 1.5 billion parameters takes the one that
is named first. So it first writes a line for each of the two, and then, with nothing but these lines before it,
follows worked examples: what the question's word means, the two values, the answer. (Examples that show the steps:
Wei et al., arXiv 2201.11903. What this brings: benchmarks/README.md, "Comparisons".)
"""

from kit.llm import inert

SIDES = (
    "For each thing that the question compares, write one line: its name, a colon, and only what the passages state of "
    "it that the question is about."
)
RESULT = "Answer: "  # how the last step of an example begins
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
_WHETHER = (
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


def messages(sides: str, question: str, whether: bool) -> list[dict]:
    """The messages that ask for the comparison of `sides`, a line each, after examples of the same kind.

    `whether` it is to end in yes or no, instead of in one of the two. The examples come first, as they stay the same.
    """
    shown = []
    for lines, asked, steps in _WHETHER if whether else _WHICH:
        shown += [_asked(lines, asked), {"role": "assistant", "content": steps}]
    return [*shown, _asked(sides, question)]


def result(steps: str) -> str:
    """The answer at the end of `steps`, or "" where they do not come to one."""
    return steps.partition(RESULT)[2].strip(" .\n")


def _asked(sides: str, question: str) -> dict:
    return {"role": "user", "content": inert(f"{sides}\nQuestion: {question}")}
