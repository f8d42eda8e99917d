"""Make a second collection: web pages of an alpine association that does not exist, and questions about them.

    python data/make_huts.py [--out DIR]

Every page is written from facts, which are drawn with a fixed seed, and every question from the same
facts, so no model has a hand in either. The pages and the questions of six valleys are for `train`, those
of the six others for `test`: no document serves both. `make_data.py` turns the text into HTML and looks
every piece of evidence up in it.
"""

import argparse
import json
import random
import re
import tempfile
import tomllib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from make_data import make

HERE = Path(__file__).parent
ORG = "Sarnau Alpine Association"
WORDS = tomllib.loads((HERE / "huts" / "words.toml").read_text(encoding="utf-8"))
VALLEYS, HUTS, FIRST, LAST = (WORDS[key] for key in ("valleys", "huts", "first", "last"))


@dataclass
class Page:
    """A page: its text, and what it states: (value, the sentence that states it) by the name of a fact."""

    title: str
    valley: str
    blocks: list[str]
    facts: dict[str, tuple[str, str]]

    @property
    def file(self) -> str:
        """Its name in the collection."""
        return self.title.lower().replace(" ", "-") + ".html"


def said(text: str, **facts) -> tuple[str, dict]:
    """A sentence, and the facts that it states."""
    return text, facts


class World:
    """All facts, drawn once. `pages` are by title; `huts`, `posts` and so on are titles in the order of the valleys."""

    def __init__(self):
        self.chance = random.Random(20261121)
        self.pages: dict[str, Page] = {}
        wardens = zip(self.chance.sample(FIRST, 48), self.chance.sample(LAST, 48), strict=True)
        self.wardens = [" ".join(name) for name in wardens]
        others = {f"{first} {last}" for first in FIRST for last in LAST} - set(self.wardens)
        self.leaders = self.chance.sample(sorted(others), 12)
        self.altitudes = [10 * n + self.chance.randrange(10) for n in self.chance.sample(range(150, 295), 48)]
        self.extensions = self.chance.sample(range(100, 400), 48)
        self.lines = self.chance.sample(range(200, 300), 12)
        for number, valley in enumerate(VALLEYS):
            mine = range(4 * number, 4 * number + 4)
            self._valley(number, valley, [HUTS[i] for i in mine])
            self._post(number, valley)
            self._circular(valley, [HUTS[i] for i in mine])
            for i in mine:
                self._hut(valley, i)
                self._person(valley, i)
            for n in (0, 2):
                self._trail(valley, 2 * number + n // 2 + 1, HUTS[mine[n]], HUTS[mine[n + 1]])

    def _page(self, title: str, valley: str, **sections: list[tuple[str, dict]]) -> None:
        blocks, facts = [], {}
        for heading, sentences in sections.items():
            blocks += [f"## {heading.replace('_', ' ')}", " ".join(text for text, _ in sentences)]
            for text, stated in sentences:
                facts |= {name: (str(value), text) for name, value in stated.items()}
        self.pages[title] = Page(title, valley, blocks, facts)

    def _either(self, *ways: str) -> str:
        return self.chance.choice(ways)

    def _date(self, *months: str) -> str:
        return f"{self.chance.randrange(1, 29)} {self.chance.choice(months)}"

    def _valley(self, number: int, valley: str, huts: list[str]) -> None:
        pick, line = self.chance.randrange, self.lines[number]
        fee, last = f"EUR {pick(3, 13)}", f"{pick(17, 21)}.{pick(10, 60)}"
        sight, mayor = self.chance.choice(WORDS["sights"]), f"{self.chance.choice(FIRST)} {self.chance.choice(LAST)}"
        self._page(
            f"{valley} Valley",
            valley,
            The_valley=[
                said(f"The {valley} Valley is one of the twelve valleys that the association looks after."),
                said(f"Its only village is {valley}dorf, which has {sight}."),
                said(f"Four of our huts stand above it: {', '.join(huts[:3])} and {huts[3]}."),
            ],
            Coming_and_going=[
                said(
                    self._either(f"Bus line {line} runs up the valley.", f"The valley is served by bus line {line}."),
                    line=line,
                ),
                said(f"The last bus down leaves {valley}dorf at {last}.", last=last),
                said(f"Parking at the end of the road costs {fee} a day.", parking=fee),
                said(f"Questions about the road are answered by the mayor, {mayor}.", mayor=mayor),
            ],
        )

    def _post(self, number: int, valley: str) -> None:
        pick, leader = self.chance.randrange, self.leaders[number]
        members, channel, before, after = pick(18, 60), pick(2, 40), pick(20, 45), pick(45, 80)
        day = self.chance.choice(("Monday", "Tuesday", "Wednesday", "Thursday"))
        vehicle, bought = self.chance.choice(WORDS["vehicles"]), pick(1998, 2024)
        self._page(
            f"{valley} Rescue Post",
            valley,
            The_post=[
                said(
                    self._either(
                        f"{leader} leads the mountain rescue post of the {valley} Valley.",
                        f"The mountain rescue post of the {valley} Valley is led by {leader}.",
                    ),
                    leader=leader,
                ),
                said(f"It has {members} volunteers.", members=members),
                said(f"In the mountains it listens on radio channel {channel}.", channel=channel),
                said(f"The volunteers train every {day} evening.", day=day),
                said(f"Their garage holds {vehicle}, bought in {bought}.", vehicle=vehicle, bought=bought),
            ],
            Missions=[
                said(f"In 2023 the post was called out {before} times.", missions_2023=before),
                said(f"In 2024 it was called out {after} times.", missions_2024=after),
            ],
        )

    def _circular(self, valley: str, huts: list[str]) -> None:
        pick, choose = self.chance.randrange, self.chance.choice
        raised, busy = self.chance.sample(huts, 2)
        price, goods = f"EUR {pick(35, 44)}", f"EUR 0.{pick(40, 95)}"
        work, meeting = self._date("May", "June"), self._date("September", "October")
        hours, gift, giver = pick(200, 900), f"EUR {pick(3, 40)},500", f"{choose(FIRST)} {choose(LAST)}"
        self._page(
            f"{valley} Circular",
            valley,
            What_changes=[
                said(f"From 2026 on, members will pay {price} a night at the {raised} Hut.", raised=price),
                said("The prices of the other three huts stay as they are."),
                said(f"A kilogram on the goods lift of the {busy} Hut will cost {goods}.", goods=goods),
            ],
            Work=[
                said(f"The working day on the paths of the {valley} Valley is {work}.", work=work),
                said("Bring gloves; tools, bread and cheese are there."),
                said(f"Last year the volunteers of the valley worked {hours} hours in all.", worked=hours),
            ],
            Meeting_and_thanks=[
                said(f"The wardens and the rescue post meet in {valley}dorf on {meeting}.", meeting=meeting),
                said(f"{giver} left the valley a gift of {gift} for a new first-aid room.", gift=gift, giver=giver),
                said("Whoever has lost something at a hut should ask there before the house is closed for the winter."),
            ],
        )

    def _hut(self, valley: str, i: int) -> None:
        pick, choose, either = self.chance.randrange, self.chance.choice, self._either
        hut, warden, altitude = f"{HUTS[i]} Hut", self.wardens[i], f"{self.altitudes[i]:,} metres"
        dogs, event, peak, part = (choose(WORDS[key]) for key in ("dogs", "events", "peaks", "parts"))
        climb, cost, nights, fewer = (
            f"{pick(2, 7)} hours",
            f"EUR {pick(12, 190)},000",
            pick(2600, 6000),
            pick(900, 2500),
        )
        renewed, rules = pick(2010, 2025), self.chance.sample(WORDS["rules"], 3)
        built, year, since, beds = pick(1878, 1965), pick(1966, 2010), pick(2004, 2024), pick(18, 120)
        builder, winter = f"{choose(FIRST)} {choose(LAST)}", pick(4, 14)
        opens, closes = self._date("May", "June"), self._date("September", "October")
        price, guest = f"EUR {pick(18, 34)}", f"EUR {pick(36, 58)}"
        water, dish, power = (choose(WORDS[key]) for key in ("water", "dishes", "power"))
        hours = f"{pick(2, 5)} hours and {choose((10, 20, 30, 40))} minutes"
        self._page(
            hut,
            valley,
            The_house=[
                said(
                    either(
                        f"The {hut} stands in the {valley} Valley at {altitude}.",
                        f"At {altitude} above the sea, in the {valley} Valley, stands the {hut}.",
                    ),
                    altitude=altitude,
                ),
                said(either(f"It was built in {built}.", f"Its oldest part dates from {built}."), built=built),
                said(either(f"{builder} drew the plans.", f"The plans were drawn by {builder}."), builder=builder),
                said(f"In {year} {event}; the repair took a whole summer.", event=year),
            ],
            Staying=[
                said(either(f"There are {beds} beds.", f"The house sleeps {beds} people."), beds=beds),
                said(f"The winter room, which is never locked, has {winter} more.", winter=winter),
                said(either(f"The hut opens on {opens} each year.", f"The season begins on {opens}."), opens=opens),
                said(f"The last night is that of {closes}.", closes=closes),
                said(f"Members of the association pay {price} a night.", price=price),
                said(f"Other guests pay {guest}.", guest=guest),
                said(f"{dogs}. {rules[0]}. {rules[1]}. {rules[2]}."),
            ],
            Kitchen_and_cellar=[
                said(
                    either(
                        f"The warden has been {warden} since {since}.", f"{warden} has been the warden since {since}."
                    ),
                    warden=warden,
                    since=since,
                ),
                said(either(f"The dish of the house is {dish}.", f"People come for the {dish}."), dish=dish),
                said(either(f"Water comes from {water}.", f"The water is from {water}."), water=water),
                said(f"Electricity comes from {power}.", power=power),
            ],
            The_way_up_and_on=[
                said(f"From the bus stop in {valley}dorf one walks {hours}.", hours=hours),
                said(f"The mountain of the house is the {peak}; the summit is {climb} away.", peak=peak, summit=climb),
                said("Where the path is covered by snow, ask the warden for the state of it before you leave."),
            ],
            From_the_books=[
                said(f"In 2023 the house counted {fewer} nights of guests.", nights_2023=fewer),
                said(f"In 2024 it counted {nights} nights.", nights_2024=nights),
                said(f"The {part} was renewed in {renewed}, which cost {cost}.", renewed=renewed, cost=cost, part=part),
            ],
        )

    def _person(self, valley: str, i: int) -> None:
        pick, choose, either = self.chance.randrange, self.chance.choice, self._either
        name, trade, hobby = self.wardens[i], choose(WORDS["trades"]), choose(WORDS["hobbies"])
        winter, friend = pick(2006, 2025), f"{choose(FIRST)} {choose(LAST)}"
        born, extension, tongue = pick(1952, 1994), self.extensions[i], choose(WORDS["languages"])
        self._page(
            name,
            valley,
            Warden=[
                said(f"{name} looks after the {HUTS[i]} Hut.", hut=f"{HUTS[i]} Hut"),
                said(f"Born in {born}, {name.split()[0]} was {trade} before.", born=born, trade=trade),
                said(f"In the long evenings {name.split()[0]} {hobby}."),
                said(f"Beside German, {name.split()[0]} speaks {tongue}.", language=tongue),
            ],
            Work=[
                said(f"{name.split()[0]} came to the association through {friend}.", friend=friend),
                said(f"The longest winter alone in the house was that of {winter}.", winter_alone=winter),
                said("Every autumn the books of the house go down to the valley in a rucksack."),
            ],
            Telephone=[
                said(
                    either(
                        f"In the house network the extension is {extension}.",
                        f"The extension is {extension}, also in winter.",
                    ),
                    extension=extension,
                ),
            ],
        )

    def _trail(self, valley: str, number: int, start: str, end: str) -> None:
        pick, choose = self.chance.randrange, self.chance.choice
        length, climb = f"{pick(4, 16)}.{pick(1, 10)} kilometres", f"{pick(200, 1300)} metres"
        mark, hazard = choose(WORDS["marks"]), choose(WORDS["hazards"])
        up, down, water, room = pick(4, 9), pick(2, 4), pick(15, 90), pick(3, 13)
        inspector, year = f"{choose(FIRST)} {choose(LAST)}", choose((2021, 2022, 2023, 2024))
        self._page(
            f"Trail {number}",
            valley,
            The_route=[
                said(
                    f"Trail {number} leads from the {start} Hut to the {end} Hut.",
                    start=f"{start} Hut",
                    end=f"{end} Hut",
                ),
                said(f"It is {length} long and climbs {climb}.", length=length, climb=climb),
                said(f"The marks are {mark}.", mark=mark),
                said(f"Take care: {hazard}."),
            ],
            Times=[
                said(f"Going up takes {up} hours, coming back {down}.", up=f"{up} hours"),
                said(f"The last water is {water} minutes from the start.", last_water=f"{water} minutes"),
                said(f"Half way stands a shelter for {room} people, with a stove and no wood.", shelter=room),
                said("In bad weather wait there, and send the strongest two ahead only if somebody is hurt."),
            ],
            Inspection=[
                said(f"{inspector} walked it for the inspection of {year}.", inspector=inspector, inspected=year),
            ],
        )


SINGLE = {  # a fact, and how it is asked for: {t} is the title of its page, {v} its valley
    "altitude": "At what altitude does the {t} stand?",
    "built": "In which year was the oldest part of the {t} built?",
    "builder": "Who drew the plans of the {t}?",
    "beds": "How many beds does the {t} have, without those of the winter room?",
    "winter": "How many beds are in the winter room of the {t}?",
    "opens": "On which date does the season of the {t} begin?",
    "closes": "Which is the last night of the season at the {t}?",
    "price": "What does a member of the association pay for a night at the {t}?",
    "guest": "What does a night at the {t} cost for somebody who is no member?",
    "dish": "What is the dish of the house at the {t}?",
    "water": "Where does the water of the {t} come from?",
    "power": "Where does the {t} get its electricity from?",
    "hours": "How long is the walk from the bus stop to the {t}?",
    "summit": "How far is the summit of the house mountain from the {t}?",
    "cost": "What did the renewal of a part of the {t} cost?",
    "line": "Which bus line serves the {t}?",
    "last": "When does the last bus leave the {t}?",
    "mayor": "Who is the mayor in the {t}?",
    "parking": "What does a day of parking cost in the {t}?",
    "leader": "Who leads the {t}?",
    "members": "How many volunteers does the {t} have?",
    "channel": "On which radio channel does the {t} listen?",
    "day": "On which day of the week do the volunteers of the {t} train?",
    "vehicle": "What stands in the garage of the {t}?",
    "raised": "Which price for members does the {t} announce for 2026?",
    "work": "On which day do people work on the paths, according to the {t}?",
    "gift": "How large is the gift that the {t} tells of?",
    "giver": "Who left a gift, according to the {t}?",
    "up": "How long does it take to go up {t}?",
    "last_water": "How far from the start is the last water on {t}?",
    "shelter": "How many people find room in the shelter of {t}?",
    "friend": "Through whom did {t} come to the association?",
    "length": "How long is {t}?",
    "climb": "How many metres does {t} climb?",
    "mark": "In which colour is {t} marked?",
    "inspector": "Who walked {t} for its inspection?",
    "trade": "What was {t} before becoming a warden?",
    "language": "Which language does {t} speak beside German?",
    "extension": "What is the telephone extension of {t}?",
}
CHAINS = (  # a fact of the first page leads to the second page, whose fact is asked for
    ("Hut", "warden", "extension", "What is the telephone extension of the warden of the {t}?"),
    ("Hut", "warden", "trade", "What did the warden of the {t} do before looking after the hut?"),
    ("Trail", "end", "altitude", "At what altitude does {t} end?"),
    ("Trail", "end", "warden", "Who is the warden of the hut at the end of {t}?"),
    ("Trail", "start", "beds", "How many beds, without those of the winter room, has the hut where {t} begins?"),
    ("Hut", "valley post", "leader", "Who leads the rescue post of the valley in which the {t} stands?"),
    ("Hut", "valley", "line", "With which bus line does one reach the valley of the {t}?"),
    ("Hut", "valley post", "channel", "Which radio channel does the rescue post in the valley of the {t} listen to?"),
)
COMPARED = (  # a fact of two pages of a kind, and which of the two is asked for
    ("Hut", "altitude", max, "Which hut stands higher, the {a} or the {b}?"),
    ("Hut", "beds", max, "Which hut has more beds, the {a} or the {b}?"),
    ("Hut", "built", min, "Which hut is older, the {a} or the {b}?"),
    ("Hut", "price", min, "Where does a member pay less for a night, at the {a} or at the {b}?"),
    ("Hut", "since", min, "Whose warden has been there longer, that of the {a} or that of the {b}?"),
    ("Rescue Post", "missions_2024", max, "Which was called out more often in 2024, the {a} or the {b}?"),
    ("Trail", "length", max, "Which is longer, {a} or {b}?"),
)
MORE = (  # a fact of two years whose difference is asked for
    ("Rescue Post", "missions", "How many times more was the {t} called out in 2024 than in 2023?"),
    ("Hut", "nights", "How many more nights of guests did the {t} count in 2024 than in 2023?"),
)
ABSENT = (
    "What does the sauna of the {t} cost?",
    "How many goats does the {t} keep?",
    "What is the e-mail address of the {t}?",
    "Which film was shot at the {t}?",
    "How many steps lead down to the cellar of the {t}?",
)


def number(value: str) -> float:
    """The first number in a value."""
    return float(re.search(r"\d[\d,.]*", value)[0].replace(",", ""))


def questions(world: World, chance: random.Random) -> list[dict]:
    """Questions of five types; those about the first six valleys are `train`, the others `test`."""
    pages = list(world.pages.values())
    found = [_single(p, fact) for p in pages for fact in _few(p, chance)]
    for kind, by, fact, text in CHAINS:
        found += [_chain(world, p, by, fact, text) for p in chance.sample(_kind(pages, kind), 12)]
    for kind, fact, which, text in COMPARED:
        for half in (VALLEYS[:6], VALLEYS[6:]):
            mine = [p for p in _kind(pages, kind) if p.valley in half]
            for a, b in chance.sample(list(combinations(mine, 2)), 6):
                if number(a.facts[fact][0]) != number(b.facts[fact][0]):
                    found.append(_comparison(*chance.sample((a, b), 2), fact, which, text))
    for kind, fact, text in MORE:
        found += [_more(p, fact, text) for p in chance.sample(_kind(pages, kind), 12)]
    for n, p in enumerate(chance.sample(_kind(pages, "Hut"), 40)):
        absent = ABSENT[n % len(ABSENT)].format(t=p.title)
        found.append({"type": "unanswerable", "question": absent, "valley": p.valley})
    for question in found:
        question["split"] = "train" if VALLEYS.index(question.pop("valley")) < 6 else "test"
    return found


def _few(p: Page, chance: random.Random) -> list[str]:
    asked = [fact for fact in p.facts if fact in SINGLE]
    return chance.sample(asked, min(2, len(asked)))


def _kind(pages: list[Page], kind: str) -> list[Page]:
    return [p for p in pages if p.title.endswith(kind) or p.title.startswith(f"{kind} ")]


def _row(kind: str, text: str, answer: str, *places: tuple[Page, str]) -> dict:
    evidence = [[p.file, p.facts[fact][1]] for p, fact in places]
    row = {"type": kind, "question": text, "answer": answer, "aliases": _aliases(answer), "evidence": evidence}
    return row | {"valley": places[0][0].valley}


def _aliases(answer: str) -> list[str]:
    """Other ways to write an answer: without its unit, its thousands, or the kind of thing that it is."""
    bare = re.sub(r"^EUR |^a |^an | (metres|hours|kilometres|minutes)$| (Hut|Rescue Post)$", "", answer)
    forms = [bare, bare.replace(",", ""), f"the {answer}"] if answer.endswith(("Hut", "Post")) else [bare]
    if answer[:3] == "EUR" or "," in answer:
        forms += [answer.replace(",", ""), bare.replace(",", ""), f"{bare} euros" if answer[:3] == "EUR" else bare]
    return [form for form in dict.fromkeys(forms) if form != answer]


def _single(p: Page, fact: str) -> dict:
    return _row("single", SINGLE[fact].format(t=p.title), p.facts[fact][0], (p, fact))


def _chain(world: World, p: Page, by: str, fact: str, text: str) -> dict:
    if by.startswith("valley"):
        second, first = world.pages[f"{p.valley} {'Rescue Post' if 'post' in by else 'Valley'}"], "altitude"
    else:
        second, first = world.pages[p.facts[by][0]], by
    return _row("multi", text.format(t=p.title), second.facts[fact][0], (p, first), (second, fact))


def _comparison(a: Page, b: Page, fact: str, which, text: str) -> dict:
    best = which((a, b), key=lambda p: number(p.facts[fact][0]))
    return _row("comparison", text.format(a=a.title, b=b.title), best.title, (a, fact), (b, fact))


def _more(p: Page, fact: str, text: str) -> dict:
    more = int(p.facts[f"{fact}_2024"][0]) - int(p.facts[f"{fact}_2023"][0])
    return _row("numeric", text.format(t=p.title), str(more), (p, f"{fact}_2023"), (p, f"{fact}_2024"))


def write(out: Path) -> None:
    """Write `out/collection/` and `out/questions.jsonl`."""
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder)
        for p in world.pages.values():
            head = f"title: {p.title}\norg: {ORG}\ndate: March 2025\nformat: html\n\n"
            (content / f"{Path(p.file).stem}.md").write_text(head + "\n\n".join(p.blocks) + "\n", encoding="utf-8")
        rows = [
            "[[question]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in row.items())
            for row in questions(world, random.Random(1))
        ]
        (content / "questions.toml").write_text("\n\n".join(rows), encoding="utf-8")
        make(content, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the pages and questions of the Sarnau Alpine Association.")
    parser.add_argument("--out", type=Path, default=HERE / "huts", help="folder for collection/ and questions.jsonl")
    write(parser.parse_args().out)
