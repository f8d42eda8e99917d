"""Synthetic questions and traces, with hand-written models: what is kept, what is not, and what a stop leaves."""

import json
from dataclasses import replace

import pytest
from conftest import FakeEmbedder
from fakes import FakeChat, FakeRetriever, found, hit, missing

from kit import distill
from kit.config import KitError
from kit.corpus import Document, whole_documents
from kit.llm import Cancelled, ContextOverflow
from kit.reasoner import Reasoner, prompt

DOCUMENTS = [
    Document("ostrel-hut.html", "The Ostrel Hut has 98 beds. The warden is Ugo Ylinen."),
    Document("tarn-hut.html", "The Tarn Hut has 30 beds. The warden is Zora Danner."),
]
BEDS = {
    "evidence": ["The Ostrel Hut has 98 beds."],
    "question": "How many beds has the Ostrel Hut?",
    "reply": "98 beds",
}
WARDEN = {
    "evidence": ["The warden is Ugo Ylinen."],
    "question": "Who looks after guests up there?",
    "reply": "Ugo Ylinen",
}


def ask(tmp_path, *replies, count=1, kinds=("plain",), documents=DOCUMENTS[:1], **more):
    model = FakeChat(*replies)
    out = tmp_path / "questions.jsonl"
    return distill.questions(documents, model, FakeEmbedder().encode, out, count, kinds=kinds, **more), model


def rows(tmp_path, name="questions.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


def test_a_question_is_kept_with_its_answer_and_source(tmp_path):
    counts, model = ask(tmp_path, BEDS)
    (row,) = rows(tmp_path)
    assert (row["question"], row["answer"], row["sources"]) == (
        BEDS["question"],
        "98 beds",
        [{"source": "ostrel-hut.html"}],
    )
    assert counts == {"accepted": 1, "by_type": {"plain": 1}, "rejected": {}}
    assert "98 beds" in model.asked[0]["messages"][0]["content"] and model.asked[0]["schema"] == distill.SCHEMA


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "Beds"}, "no question"),
        ({"question": "How many beds are in this document?"}, "speaks of the document"),
        ({"question": "At what time does the Old Mill open in summer?"}, "repeats the template"),
        ({"reply": ""}, "no answer"),
        ({"evidence": []}, "no evidence"),
        ({"evidence": ["The Ostrel Hut has 99 beds."]}, "evidence is not in the document"),
        ({"reply": "Ugo Ylinen"}, "answer is not in the evidence"),
        ({"question": "Has the Ostrel Hut 98 beds or not?"}, "answer is in the question"),
    ],
)
def test_what_cannot_be_used_is_kept_with_the_reason(tmp_path, change, reason):
    counts, _ = ask(tmp_path, BEDS | change, BEDS)
    assert [row["rejected"] for row in rows(tmp_path)] == [reason, ""]
    assert counts["rejected"] == {reason: 1}


def test_a_question_that_comes_again_or_is_in_a_test_is_not_kept(tmp_path):
    counts, _ = ask(tmp_path, BEDS, BEDS, WARDEN, count=2)
    assert counts["rejected"] == {"alike": 1}
    (tmp_path / "questions.jsonl").unlink()
    counts, _ = ask(tmp_path, BEDS, WARDEN, known=[BEDS["question"]])
    assert counts["rejected"] == {"alike": 1}


def test_a_comparison_is_about_two_documents_and_is_answered_by_one_of_them(tmp_path):
    both = {"evidence": [d.text.split(". ")[0] for d in DOCUMENTS], "question": "Which has more beds, Ostrel or Tarn?"}
    replies = (both | {"reply": "both of them"}, both | {"reply": "Ostrel Hut"})
    counts, model = ask(tmp_path, *replies, kinds=("comparison",), documents=DOCUMENTS)
    assert counts["rejected"] == {"answer is neither of the two": 1}
    assert all(d.text in model.asked[0]["messages"][0]["content"] for d in DOCUMENTS)
    assert len(rows(tmp_path)[1]["sources"]) == 2


def test_what_is_out_of_scope_has_no_answer(tmp_path):
    ask(tmp_path, {"evidence": [], "question": "What does the sauna cost?", "reply": "x"}, kinds=("out_of_scope",))
    (row,) = rows(tmp_path)
    assert (row["answer"], row["answerable"], row["sources"]) == ("", False, [])


def test_every_kind_has_a_template_with_its_two_places():
    for kind in distill.KINDS:
        text = (distill.TEMPLATES / f"{kind}.txt").read_text(encoding="utf-8")
        assert text.count("{documents}") == 1 == text.count("{persona}"), kind


def test_a_teacher_that_never_gives_a_usable_row_is_given_up(tmp_path):
    with pytest.raises(KitError, match="0 usable questions in 5 tries"):
        ask(tmp_path, *[BEDS | {"reply": ""}] * 5)
    with pytest.raises(KitError, match="no document"):
        ask(tmp_path, documents=[])


def test_a_stopped_run_goes_on_and_asks_nothing_twice(tmp_path):
    with pytest.raises(Cancelled):
        ask(tmp_path, BEDS, Cancelled(), count=2)
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write('{"id": "cut o')  # as a full disk or a kill leaves it
    ask(tmp_path, WARDEN, count=2)
    assert [row["id"] for row in rows(tmp_path)] == ["plain-0000", "plain-0001"]
    assert ask(tmp_path, count=2)[0]["accepted"] == 2  # and then there is nothing to do


def test_rows_that_are_no_tries_or_leak_a_test_are_refused(tmp_path):
    ask(tmp_path, BEDS)
    with pytest.raises(KitError, match="keep away from; use another --out"):
        ask(tmp_path, WARDEN, count=2, known=[BEDS["question"]])
    with pytest.raises(KitError, match="has not written; use another --out"):
        distill.traces([{"id": "q"}], None, None, 5, tmp_path / "questions.jsonl")
    (tmp_path / "questions.jsonl").write_text('{"id": "1", "question": "Who?", "answer": "Ada"}')
    with pytest.raises(KitError, match="has not written; use another --out"):
        ask(tmp_path, BEDS)


def trace(tmp_path, *replies, question=None, tries=2, hits=None):
    asked = {"id": "q", "question": "Rent?", "answer": "48,000", "aliases": [], "sources": [], "type": "plain"}
    asked |= {"answerable": True} | (question or {})
    hits = [hit("a", "The rent is 48,000 euros.")] if hits is None else hits
    model = FakeChat(*replies)
    counts = distill.traces([asked], FakeRetriever(hits), Reasoner(model, 40, 60), 5, tmp_path / "t.jsonl", tries)
    return counts, model


def test_a_right_and_supported_trace_is_kept_with_what_was_read(tmp_path):
    counts, model = trace(tmp_path, "The passage states it.", found("48,000", "The rent is 48,000"))
    (row,) = rows(tmp_path, "t.jsonl")
    assert counts["accepted"] == 1 and row["answer"] == "48,000" and row["hits"][0]["text"].startswith("The rent")
    assert model.seed == 0


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        (("It says", *found("48,000", "The rent is 48,000")), "thoughts are cut off"),
        (("It says so.", *found("euros.", "euros.")), "wrong"),
        (("It says so.", *missing("rent")), "no supported answer"),
    ],
)
def test_a_trace_that_is_not_right_is_tried_with_another_seed(tmp_path, replies, reason):
    counts, model = trace(tmp_path, *replies, "The passage states it.", *found("48,000", "The rent is 48,000"))
    assert [row["rejected"] for row in rows(tmp_path, "t.jsonl")] == [reason, ""]
    assert counts["accepted"] == 1 and model.seed == 1


def test_an_answer_is_right_with_a_word_more_and_wrong_with_another_number(tmp_path):
    for answer, right in (("Bus line 263", True), ("line 12", False), ("route 12 or line 263 or bus 7 or 9", False)):
        question = {"answer": "263", "answerable": True}
        counts, _ = trace(tmp_path, "So.", *found(answer, "The rent is 48,000"), question=question, tries=1)
        assert counts["accepted"] == right, answer
        (tmp_path / "t.jsonl").unlink()


def test_a_question_without_an_answer_is_right_where_nothing_is_found(tmp_path):
    question = {"answer": "", "answerable": False}
    counts, _ = trace(tmp_path, "It is not stated.", *missing("sauna"), question=question)
    assert counts["accepted"] == 1
    (tmp_path / "t.jsonl").unlink()
    counts, _ = trace(tmp_path, "So.", *found("48,000", "48,000 euros"), question=question, tries=1)
    assert counts["rejected"] == {"answers what the documents do not hold": 1}


def test_a_question_that_does_not_fit_the_window_stops_no_other(tmp_path):
    counts, _ = trace(tmp_path, ContextOverflow(9000, 8192), ContextOverflow(9000, 8192))
    assert counts["rejected"] == {"does not fit the window": 2}
    counts, _ = trace(tmp_path, "So.", found("48,000", "The rent is 48,000"), question={"id": "another"})
    assert counts["accepted"] == 1


def test_traces_that_are_there_are_not_made_again(tmp_path):
    trace(tmp_path, "The passage states it.", found("48,000", "The rent is 48,000"))
    counts, model = trace(tmp_path)
    assert counts["accepted"] == 1 and model.asked == []


def test_another_question_with_the_same_id_is_traced(tmp_path):
    trace(tmp_path, "The passage states it.", found("48,000", "The rent is 48,000"))
    counts, _ = trace(
        tmp_path, "It states it.", found("48,000", "The rent is 48,000"), question={"question": "How much is the rent?"}
    )
    assert counts["accepted"] == 2


def test_traces_of_nothing_are_refused(tmp_path):
    with pytest.raises(KitError, match="another --split"):
        distill.traces([], FakeRetriever([]), Reasoner(FakeChat(), 40, 60), 5, tmp_path / "t.jsonl")


def test_training_and_answering_share_one_prompt(tmp_path):
    _, model = trace(tmp_path, "The passage states it.", found("48,000", "The rent is 48,000"))
    row = distill.training_row(rows(tmp_path, "t.jsonl")[0])
    assert row["prompt"] == model.asked[0]["messages"]
    opened = model.asked[1]["messages"][-1]["content"]
    assert row["completion"][0]["content"] == f'{opened}48,000"'
    assert row["completion"][1] == model.asked[2]["messages"][-1]
    assert json.loads(row["completion"][2]["content"]) == {"words": ["The rent is 48,000"]}
    assert prompt("Rent?", [], (), "")[0] == row["prompt"][0]


def test_whole_documents_join_pages_and_name_what_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "empty.pdf").write_bytes(b"")
    failed: list = []
    assert whole_documents([tmp_path], failed) == [Document("a.txt", "One.")]
    assert failed[0]["file"] == "empty.pdf"
    assert replace(DOCUMENTS[0], text="x").source == "ostrel-hut.html"
