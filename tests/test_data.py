"""The collection and its questions: the same bytes each time, readable, and right."""

import ast
import importlib.util
import json
import operator
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
SPEC = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
make_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_data)

ROWS = [json.loads(line) for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
ANSWERABLE = [row for row in ROWS if row["answerable"]]
TEXTS = {path.name: make_data.page_texts(path) for path in sorted((DATA / "collection").iterdir())}
EVERYTHING = " ".join(page for pages in TEXTS.values() for page in pages).casefold()
PER_TYPE = {
    "dev": {"single": 12, "comparison": 26, "multi": 26, "numeric": 8, "unanswerable": 16},
    "test": {"single": 62, "comparison": 75, "multi": 75, "numeric": 38, "unanswerable": 40},
}
CONTENT = """title: Small, ünusual
kind: Note
org: Somebody
date: 2020-01-02

# First

A line with ten metres & <tags>.

- an item

| Name | Sum |
| Łukasz | 1.50 |

---

1. On the second page.
"""


def by_id(row):
    return row["id"]


def page_text(place):
    return TEXTS[place["source"]][place.get("page", 1) - 1]


def evaluate(expression):
    """The value of a sum of numbers; anything but numbers, + - * / and brackets raises ValueError."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

    def value(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            return operators[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"not arithmetic: {ast.unparse(node)}")

    return value(ast.parse(expression, mode="eval").body)


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))


def test_making_it_again_gives_the_committed_bytes(tmp_path):
    make_data.make(DATA / "content", tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(DATA): p.read_bytes() for p in (DATA / "collection").iterdir()}
    kept[Path("questions.jsonl")] = (DATA / "questions.jsonl").read_bytes()
    assert sorted(made) == sorted(kept)
    assert [str(path) for path in made if made[path] != kept[path]] == []


def test_size_of_the_collection():
    pdfs = [name for name in TEXTS if name.endswith(".pdf")]
    assert len(pdfs) >= 12
    assert sum(len(TEXTS[name]) for name in pdfs) >= 60
    assert len([name for name in TEXTS if name.endswith(".html")]) == 4
    assert sum(path.stat().st_size for path in (DATA / "collection").iterdir()) < 3_000_000
    assert min(len(page.split()) for name in pdfs for page in TEXTS[name]) > 150


@pytest.mark.parametrize("name", TEXTS)
def test_every_paragraph_and_table_row_can_be_read_back(name):
    _, blocks = make_data.parse((DATA / "content" / name).with_suffix(".md").read_text(encoding="utf-8"))
    text = " ".join(TEXTS[name])
    for kind, content in blocks:
        lines = [" ".join(row) for row in content] if kind == "table" else [content] if kind != "break" else []
        assert [line for line in lines if line not in text] == []


def test_pages_repeat_title_and_number():
    for name, pages in TEXTS.items():
        fields, _ = make_data.parse((DATA / "content" / name).with_suffix(".md").read_text(encoding="utf-8"))
        for number, page in enumerate(pages, 1):
            assert fields["title"] in page
            assert name.endswith(".html") or page.endswith(f"Page {number}")


def test_questions_counts():
    assert len({row["id"] for row in ROWS}) == len({row["question"] for row in ROWS}) == len(ROWS) == 378
    for split, counts in PER_TYPE.items():
        assert Counter(row["type"] for row in ROWS if row["split"] == split) == counts


@pytest.mark.parametrize("row", ROWS, ids=by_id)
def test_row_is_well_formed(row):
    assert row["question"].strip().endswith("?")
    assert row["answerable"] == bool(row["answer"]) == bool(row["sources"]) == (row["type"] != "unanswerable")
    assert isinstance(row["aliases"], list) and row["answer"] not in row["aliases"]
    assert len(row["answer"].split()) <= 6
    for place in row["sources"]:
        assert place["source"] in TEXTS
        assert ("page" in place) == place["source"].endswith(".pdf")
        assert 1 <= place.get("page", 1) <= len(TEXTS[place["source"]])


@pytest.mark.parametrize("row", ANSWERABLE, ids=by_id)
def test_evidence_stands_on_the_gold_pages(row):
    for evidence in row["evidence"]:
        assert evidence["text"] in page_text(evidence)
    places = [{key: e[key] for key in ("source", "page") if key in e} for e in row["evidence"]]
    assert all(place in row["sources"] for place in places) and all(place in places for place in row["sources"])
    if row["type"] in ("comparison", "multi"):
        assert len({place["source"] for place in row["sources"]}) >= 2


@pytest.mark.parametrize("row", [row for row in ANSWERABLE if "compute" not in row], ids=by_id)
def test_answer_stands_in_the_evidence(row):
    # "2025" or "version 5.0" may be said by the title of the page alone
    heard = " ".join(e["text"] + " " + page_text(e)[:120] for e in row["evidence"]).casefold()
    assert any(form.casefold() in heard for form in [row["answer"], *row["aliases"]])


@pytest.mark.parametrize("row", [row for row in ANSWERABLE if "compute" in row], ids=by_id)
def test_computed_answer(row):
    answer = numbers(row["answer"])[0]
    decimals = len(answer.partition(".")[2])
    in_words = {"9": "nine"}  # numbers that the documents write out
    said = " ".join(e["text"] for e in row["evidence"]).replace(",", "")
    for number in numbers(row["compute"]):
        assert number in {"10", "60", "100"} or number in said or in_words.get(number, "?") in said
    assert f"{evaluate(row['compute']):.{decimals}f}" == answer


@pytest.mark.parametrize("row", [row for row in ROWS if "absent" in row], ids=by_id)
def test_term_of_an_unanswerable_question_is_absent(row):
    assert row["type"] == "unanswerable"
    assert row["absent"].casefold() not in EVERYTHING


def test_evaluator_takes_arithmetic_only():
    assert evaluate("10.20 * (100 - 45) / 100") == pytest.approx(5.61)
    for expression in ("open('x')", "2 ** 3", "'a' + 'b'"):
        with pytest.raises(ValueError, match="not arithmetic"):
            evaluate(expression)


def test_another_content_folder(tmp_path):
    (tmp_path / "note.md").write_text(CONTENT, encoding="utf-8")
    (tmp_path / "site.md").write_text(CONTENT.replace("\n\n", "\nformat: html\n\n", 1), encoding="utf-8")
    make_data.make(tmp_path, tmp_path / "out")
    first, second = make_data.page_texts(tmp_path / "out" / "collection" / "note.pdf")
    assert "A line with ten metres & <tags>. • an item Name Sum Łukasz 1.50" in first
    assert "1. On the second page." in second
    (web,) = make_data.page_texts(tmp_path / "out" / "collection" / "site.html")
    assert "A line with ten metres & <tags>. an item Name Sum Łukasz 1.50 1. On the second page." in web
    assert not (tmp_path / "out" / "questions.jsonl").exists()


def test_evidence_must_stand_on_exactly_one_page():
    assert make_data.place("a.pdf", "two", ["one", "two three"]) == {"source": "a.pdf", "page": 2}
    assert make_data.place("a.html", "one", ["one"]) == {"source": "a.html"}
    for pages in (["one"], ["two", "two"]):
        with pytest.raises(ValueError, match=r"a\.pdf: 'two' stands on pages"):
            make_data.place("a.pdf", "two", pages)


def test_the_second_collection_is_made_from_its_facts_alone(tmp_path):
    huts = DATA / "huts"
    subprocess.run([sys.executable, DATA / "make_huts.py", "--out", tmp_path], check=True, capture_output=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(huts): path.read_bytes() for path in huts.rglob("*") if path.is_file()}
    assert {name: text for name, text in kept.items() if name.name != "words.toml"} == made
    assert len(made) > 150 and sum(map(len, made.values())) > sum(
        len(page) for pages in TEXTS.values() for page in pages
    )


def test_no_document_of_the_second_collection_is_trained_on_and_tested():
    rows = [json.loads(line) for line in (DATA / "huts" / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == len(rows) > len(ROWS)
    assert not {row["question"] for row in rows} & {row["question"] for row in ROWS}
    used = {
        split: {place["source"] for row in rows if row["split"] == split for place in row["sources"]}
        for split in ("train", "test")
    }
    assert not used["train"] & used["test"]
    assert sum(row["split"] == "test" and row["answerable"] for row in rows) >= 200
    for row in rows:
        said = " ".join(e["text"] + " " + e["source"].replace("-", " ") for e in row.get("evidence", [])).casefold()
        assert row["type"] in ("numeric", "unanswerable") or row["answer"].casefold() in said


GENERAL = [json.loads(line) for line in (DATA / "general/questions.jsonl").read_text(encoding="utf-8").splitlines()]
PASSAGES = [
    json.loads(line) for line in (DATA / "general/collection/passages.jsonl").read_text(encoding="utf-8").splitlines()
]
BY_TITLE = {row["title"]: " ".join(row["text"].split()) for row in PASSAGES}


def test_the_general_questions_are_as_many_as_is_said():
    assert len(BY_TITLE) == len(PASSAGES) == 562 and len({row["id"] for row in GENERAL}) == len(GENERAL)
    kinds = {"multi": 20, "comparison": 8, "single": 7, "unanswerable": 5}
    wanted = {("dev", kind): 3 * n for kind, n in kinds.items()} | {("test", kind): 4 * n for kind, n in kinds.items()}
    wanted |= {("dev", "unanswerable"): 60, ("test", "unanswerable"): 60}
    assert Counter((row["split"], row["type"]) for row in GENERAL) == wanted


@pytest.mark.parametrize("row", GENERAL, ids=by_id)
def test_a_general_question_is_answered_where_it_says(row):
    assert row["answerable"] == bool(row["sources"]) == bool(row["answer"]) == (row["type"] != "unanswerable")
    assert [piece["source"] for piece in row["evidence"]] == [place["source"] for place in row["sources"]]
    for piece in row["evidence"]:
        assert " ".join(piece["text"].split()) in BY_TITLE[piece["source"]]
    if row["type"] in ("multi", "single"):
        *before, last = row["sources"]
        stated = [
            any(re.search(rf"\b{re.escape(said)}\b", BY_TITLE[place["source"]], re.I) for said in named(row))
            for place in [*before, last]
        ]
        assert stated[-1] and not any(stated[:-1]), "the answer stands in the last passage alone"


def named(row):
    return [row["answer"], *row["aliases"]]
