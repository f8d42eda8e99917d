"""Questions in, rows on the disk, figures that a hand calculation gives too."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from kit import evaluation
from kit.config import KitError

GOLD = {
    "id": "q",
    "question": "Who?",
    "answer": "Ada Nilsen",
    "aliases": ["Nilsen"],
    "type": "single",
    "answerable": True,
}
GOLD |= {"sources": [{"source": "a.pdf", "page": 2}, {"source": "b.html"}]}
UNKNOWN = {"id": "u", "question": "Why?", "answer": "", "aliases": [], "sources": [], "type": "unanswerable"}
UNKNOWN |= {"answerable": False}
USAGE = {"calls": 2, "prompt_tokens": 100, "output_tokens": 10, "engine_seconds": 1.5}
SETTINGS = {"profile": "ci", "k": 5}


def said(answer="Ada Nilsen", answered=True, sources=()):
    return {"answer": answer, "answered": answered, "sources": list(sources), "usage": USAGE, "seconds": 2.0}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_bad_line_is_named_and_the_rest_is_read(tmp_path):
    rows = [{"id": "1", "question": "Who?", "answer": "Ada"}, "{", {"id": "2", "question": "", "answer": "x"}, "", "[]"]
    questions, bad = evaluation.read_questions(write(tmp_path / "q.jsonl", *rows))
    assert [q["id"] for q in questions] == ["1"]
    assert questions[0] | {"aliases": [], "sources": [], "answerable": True} == questions[0]
    assert [b["line"] for b in bad] == [2, 3, 5]
    assert 'no text under "question"' in bad[1]["error"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([{"id": "1", "question": "Who?", "answer": "Ada"}] * 2, "'1' in line 2"),
        (["", "{}"], "no question in"),
    ],
)
def test_question_files_that_are_refused(tmp_path, lines, says):
    with pytest.raises(KitError, match=says):
        evaluation.read_questions(write(tmp_path / "q.jsonl", *lines))
    with pytest.raises(KitError, match="cannot be read"):
        evaluation.read_questions(tmp_path / "absent.jsonl")


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    asked = []

    def answer(question, mode):
        asked.append((question["id"], mode))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return said()

    with pytest.raises(KeyboardInterrupt):
        evaluation.run([GOLD, UNKNOWN], ["rag", "agentic"], answer, tmp_path, SETTINGS)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"id": "u", "mo')  # what a kill in the middle of writing leaves
    rows = evaluation.run([GOLD, UNKNOWN], ["rag", "agentic"], answer, tmp_path, SETTINGS)
    assert asked == [("q", "rag"), ("q", "agentic"), ("u", "rag"), ("u", "rag"), ("u", "agentic")]
    assert [(row["id"], row["mode"]) for row in rows] == asked[:2] + asked[3:]
    assert rows == [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("left", [b'{"answer": "', '{"answer": "\u00d6"'.encode()[:-2], b""])
def test_rows_survive_a_kill_and_every_sign_in_an_answer(tmp_path, left):
    """What a kill leaves may end in half a letter, and a line separator in an answer ends no row."""
    evaluation.run([GOLD], ["rag"], lambda q, m: said("Ada\u2028Nilsen\u0085"), tmp_path, SETTINGS)
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(left)
    rows = evaluation.run([GOLD, UNKNOWN], ["rag"], lambda q, m: said("x"), tmp_path, SETTINGS)
    assert (
        [row["answer"] for row in rows]
        == ["Ada\u2028Nilsen\u0085", "x"]
        == [row["answer"] for row in evaluation.read_rows(tmp_path / "rows.jsonl")]
    )


def test_reading_rows_changes_no_file_and_a_last_line_needs_no_end(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"id": 1}, "", {"id": 2})
    before = path.read_bytes()
    assert evaluation.read_rows(path) == [{"id": 1}, {"id": 2}] and path.read_bytes() == before
    with evaluation.appending(path, "", 1, 0) as (append, _):
        append({"id": 3})
    assert [row["id"] for row in evaluation.read_rows(path)] == [1, 2, 3]
    for bad in ("{oops", "5"):
        with pytest.raises(KitError, match=r"Line 1 of .* is no row"):
            evaluation.read_rows(write(tmp_path / "bad.jsonl", bad, {"id": 2}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"aliases": "Oslo"},
        {"aliases": 5},
        {"sources": 5},
        {"sources": [{"page": 1}]},
        {"sources": [{"source": "a.pdf", "page": [3, 4]}]},
        {"sources": [{"source": "a.pdf", "page": 0}]},
        {"type": ["x"]},
        {"answerable": "perhaps"},
        {"answer": ["Ada"]},
        {"answer": None},
        {"id": " "},
    ],
)
def test_fields_of_another_kind_are_named(tmp_path, wrong):
    rows = [{"id": "1", "question": "Who?", "answer": "Ada"}, {"id": "2", "question": "Who?", "answer": "Ada"} | wrong]
    questions, bad = evaluation.read_questions(write(tmp_path / "q.jsonl", *rows))
    assert len(questions) == 1 and [b["line"] for b in bad] == [2] and next(iter(wrong)) in bad[0]["error"]


@pytest.mark.parametrize(
    "line", ['{"id": "2", "question": "Who \\ud83d?", "answer": "x"}', '{"answer": NaN}', "9" * 5000]
)
def test_what_is_no_json_is_named(tmp_path, line):
    row = {"id": "1", "question": "Who?", "answer": "Ada"}
    questions, bad = evaluation.read_questions(write(tmp_path / "q.jsonl", row, line))
    assert len(questions) == 1 and bad[0]["line"] == 2 and bad[0]["error"].startswith("Line 2 of")


def test_numbers_do_for_texts_and_null_for_what_is_missing(tmp_path):
    row = {"id": 7, "question": "When?", "answer": 1912, "aliases": None, "type": None, "answerable": None}
    row["sources"] = [{"source": "a.pdf", "page": 3.0}, {"source": "b.pdf", "page": "4"}, {"source": "C", "page": None}]
    absent = {"id": "u", "question": "Why?", "answer": None, "answerable": False, "split": "dev"}
    (read, unanswerable), bad = evaluation.read_questions(write(tmp_path / "q.jsonl", row, absent))
    assert not bad and (read["id"], read["answer"], read["aliases"], read["answerable"]) == ("7", "1912", [], True)
    assert [place["page"] for place in read["sources"]] == [3, 4, None]
    assert (unanswerable["answer"], unanswerable["answerable"], unanswerable["split"]) == ("", False, "dev")


def test_gold_passages_are_asked_about_again_where_the_sources_were_mended(tmp_path):
    evaluation.run([GOLD], ["rag", "gold"], lambda q, m: said("Moe"), tmp_path, SETTINGS)
    mended = {**GOLD, "sources": [{"source": "b.html"}]}
    rows = evaluation.run([mended], ["rag", "gold"], lambda q, m: said(), tmp_path, SETTINGS)
    assert [row["answer"] for row in rows] == ["Moe", "Ada Nilsen"]


def test_questions_without_a_type_are_a_type_of_their_own():
    typed, untyped = {**GOLD, "id": "1"}, {**GOLD, "id": "2", "type": "untyped"}
    rows = [{"id": i, "mode": mode, **said(), "error": ""} for i in "12" for mode in ("rag", "agentic")]
    kinds = [pair["type"] for pair in evaluation.summarize([typed, untyped], rows)["paired"]]
    assert kinds == ["all", "all", "single", "single", "untyped", "untyped"]


def test_a_question_that_was_reworded_is_asked_again(tmp_path):
    evaluation.run([GOLD], ["rag"], lambda q, m: said("Moe"), tmp_path, SETTINGS)
    (row,) = evaluation.run([{**GOLD, "question": "Who was it?"}], ["rag"], lambda q, m: said(), tmp_path, SETTINGS)
    assert (row["question"], row["answer"]) == ("Who was it?", "Ada Nilsen")


def test_rows_of_other_settings_are_refused(tmp_path):
    evaluation.run([GOLD], ["rag"], lambda q, m: said(), tmp_path, SETTINGS)
    with pytest.raises(KitError, match="another k;"):
        evaluation.run([GOLD], ["rag"], lambda q, m: said(), tmp_path, {**SETTINGS, "k": 3})


def test_a_kill_or_a_full_disk_leaves_no_half_written_settings(tmp_path, monkeypatch):
    def full(self, text, **_):
        with self.open("w") as file:
            file.write(text[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(Path, "write_text", full)
        evaluation.run([GOLD], ["rag"], lambda q, m: said(), tmp_path, SETTINGS)
    assert len(evaluation.run([GOLD], ["rag"], lambda q, m: said(), tmp_path, SETTINGS)) == 1


def test_an_engine_that_dies_is_brought_back_and_a_lasting_fault_is_kept(tmp_path):
    faults = [KitError("Ollama does not answer."), KitError("The prompt has 9000 tokens.")]
    asked = []

    def answer(question, mode):
        asked.append(question["id"])
        if len(asked) in (1, 3):
            raise faults.pop(0)
        return said()

    rows = evaluation.run([GOLD, UNKNOWN], ["rag"], answer, tmp_path, SETTINGS, lambda e: "not answer" in str(e))
    assert asked == ["q", "q", "u"]
    assert [row["error"] for row in rows] == ["", "The prompt has 9000 tokens."]
    figures = evaluation.summarize([GOLD, UNKNOWN], rows)["modes"]["rag"]
    assert (figures["errors"], figures["abstention_recall"]) == (1, 0), "a fault is no refusal"
    rows = evaluation.run([GOLD, UNKNOWN], ["rag"], answer, tmp_path, SETTINGS)
    assert asked == ["q", "q", "u", "u"] and not any(row["error"] for row in rows), "the next run asks again"


@pytest.mark.parametrize(
    ("answer", "em", "f1"),
    [("the Ada Nilsen.", 1, 1), ("Nilsen", 1, 1), ("Ada Nilsen of Tarrin", 0, 2 / 3), ("Per Moe", 0, 0), ("", 0, 0)],
)
def test_exact_match_and_f1_as_in_the_squad_script(answer, em, f1):
    found = evaluation.score(GOLD, said(answer))
    assert (found["em"], found["f1"]) == (em, pytest.approx(f1, abs=1e-4))


def test_yes_earns_nothing_where_the_answer_is_a_sentence_with_yes():
    assert evaluation.score({**GOLD, "answer": "yes", "aliases": []}, said("yes it did"))["f1"] == 0
    assert evaluation.score({**GOLD, "answer": "Yes", "aliases": []}, said("yes."))["f1"] == 1


def test_a_declined_question_scores_nothing():
    found = evaluation.score(GOLD, said("Ada Nilsen", answered=False))
    assert (found["em"], found["f1"], found["declined"], found["citation_recall"]) == (0, 0, True, None)
    blood = evaluation.score({**GOLD, "answer": "A", "aliases": []}, said("", answered=False))
    assert (blood["em"], blood["f1"]) == (0, 0), "of a group of blood the script leaves nothing, as of no answer"


def test_one_question_alone_can_be_summarized(tmp_path):
    rows = evaluation.run(
        [GOLD], ["rag", "agentic"], lambda q, m: said("Moe" if m == "rag" else "Ada Nilsen"), tmp_path, SETTINGS
    )
    paired = evaluation.summarize([GOLD], rows)["paired"]
    assert paired and all(pair["p"] == 1 for pair in paired)


def test_citations_are_pages_where_the_gold_has_pages():
    cited = [{"source": "a.pdf", "page": 2}, {"source": "a.pdf", "page": 3}, {"source": "b.html", "page": None}]
    found = evaluation.score(GOLD, said(sources=cited))
    assert (found["citation_precision"], found["citation_recall"]) == (pytest.approx(2 / 3), 1)


def test_summary_of_two_modes():
    questions = [{**GOLD, "id": str(n)} for n in range(8)] + [UNKNOWN]
    rows = [{"id": str(n), "mode": "rag", **said("Ada Nilsen" if n < 2 else "Moe"), "error": ""} for n in range(8)]
    rows += [{"id": str(n), "mode": "agentic", **said(answered=n > 0), "error": ""} for n in range(8)]
    rows += [
        {"id": "u", "mode": "rag", **said(), "error": ""},
        {"id": "u", "mode": "agentic", **said(answered=False), "error": ""},
    ]
    summary = evaluation.summarize(questions, rows)
    rag, agentic = summary["modes"]["rag"], summary["modes"]["agentic"]
    assert (rag["n"], rag["em"], agentic["em"]) == (9, 0.25, 0.875)
    assert rag["em_ci"][0] < 0.25 < rag["em_ci"][1]
    assert (rag["abstention_precision"], rag["abstention_recall"], rag["answerable_declined"]) == (None, 0, 0)
    assert (agentic["abstention_precision"], agentic["abstention_recall"]) == (0.5, 1)
    assert (rag["calls"], rag["prompt_tokens"], rag["seconds_p50"], rag["by_type"]["single"]["n"]) == (2, 100, 2, 8)
    pairs = {pair["measure"]: pair for pair in summary["paired"]}
    assert (pairs["em"]["a"], pairs["em"]["b"], pairs["em"]["test"], pairs["em"]["delta"]) == (
        "rag",
        "agentic",
        "mcnemar",
        0.625,
    )
    # 6 questions only agentic has right, 1 only rag: 2 * (1 + 7) / 2**7
    assert pairs["em"]["p"] == pytest.approx(2 * 8 / 2**7)
    assert pairs["f1"]["test"] == "randomization"


def test_the_randomization_test_agrees_with_all_sign_flips():
    a, b = np.zeros(6), np.array([1, 1, 1, 1, 1, 0.5])
    assert evaluation.compare(a, b)["p"] == pytest.approx(2 / 2**6)
    assert evaluation.compare(a, a) == {"test": "randomization", "delta": 0.0, "ci": [0.0, 0.0], "p": 1.0}


class Found:
    def __init__(self, source, page=None):
        self.source, self.page = source, page


def test_retrieval_counts_a_place_once_at_its_best_rank():
    ranking = [Found("x.pdf", 1), Found("b.html"), Found("b.html"), Found("a.pdf", 3)]
    found = evaluation.retrieval([GOLD, UNKNOWN], lambda query, k: ranking[:k], 4)
    assert found == {"hit@4": 1.0, "recall@4": 0.5, "mrr": 0.5, "ndcg": pytest.approx(0.387, abs=1e-3)}
    assert evaluation.retrieval([UNKNOWN], lambda query, k: [], 4)["mrr"] is None


def test_plots_are_written_and_those_of_the_caller_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.use", None)  # called in a notebook, it would hide every plot after it
    rows = [{"id": "q", "mode": mode, **said(), "error": ""} for mode in ("rag", "agentic")]
    for path in evaluation.plot(evaluation.summarize([GOLD], rows), tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
