"""The agent over fake models: when it searches, when it tries again, and what it may not say."""

import threading
import time
from dataclasses import asdict, replace

import pytest
from fakes import FakeChat, FakeRetriever, call, found, hit, missing

from kit.agent import ALONE, FAR, SYSTEM, Assistant
from kit.config import PROFILES, KitError
from kit.llm import Cancelled
from kit.reasoner import NOT_FOUND, SURE_ALONE

RENT = hit("a", "The rent is 48,000 euros.")
RISE = hit("b", "The rent rises by 5 percent.", "minutes.pdf")
CHAIR = hit("c", "Ada Lind chairs the board.", "board.txt")


def assistant(primary: list, reasoner: list, hits) -> Assistant:
    return Assistant(PROFILES["ci"], FakeChat(*primary), FakeChat(*reasoner), FakeRetriever(hits))


def test_a_sufficient_verdict_is_the_answer_without_another_call():
    answer = (it := assistant([call("rent?")], ["", found("48,000 euros", "48,000 euros")], [RENT])).ask("Rent?")
    assert (answer.answer, answer.answered, answer.state) == ("48,000 euros", True, "answered")
    assert answer.sources == [{"source": "lease.pdf", "page": 1, "quote": "The rent is 48,000 euros."}]
    assert len(it.primary.asked) == 1 and answer.usage["calls"] == 7


def test_the_better_query_is_tried_and_nothing_is_read_twice():
    hits = {"What is the rent now?": [RENT], "rent rise": [RENT, RISE]}
    reasoner = ["", missing("rent rise", "The rent is 48,000 euros"), "", found("50,400", "by 5 percent")]
    it = assistant([call("rent"), call("rent rise")], reasoner, hits)
    answer = it.ask("What is the rent now?")
    assert answer.answered and it.retriever.queries == [*hits, "rent rise"], "looked up, then tried"
    assert [[r["id"] for r in step["read"]] for step in answer.steps] == [["a"], ["b"]]
    assert "better query: rent rise" in it.primary.asked[1]["messages"][-1]["content"]
    second = it.reasoner.model.asked[3]["messages"][-1]["content"]
    assert second.count("The rent is 48,000 euros") == 1, "the quote is a note now, the passage is not read again"
    assert {s["quote"] for s in answer.sources} == {"The rent is 48,000 euros", "by 5 percent"}


@pytest.mark.parametrize(("stand_in", "tries"), [(True, 1), (False, 2)])
def test_a_stand_in_does_not_try_words_that_find_what_was_read(stand_in, tries):
    again = [call("lease rent"), {"action": "final_answer", "input": {"answer": "48,000"}}]
    it = assistant([call("rent"), *again], ["", missing("lease rent")], [RENT])
    it.reasoner.stand_in = stand_in
    answer = it.ask("What is the deposit?")
    assert (answer.answer, answer.state, len(answer.steps)) == (NOT_FOUND, "not_found", tries)
    assert len(it.primary.asked) == (1 if stand_in else 3)
    assert answer.steps[0]["verdict"]["better_query"] == ("" if stand_in else "lease rent")


def test_other_words_that_find_something_new_are_tried_even_if_they_find_first_what_was_read():
    hits = {"What is the rent now?": [RENT, CHAIR], "rent rise": [RENT, CHAIR, RISE, hit("d", "No rent is due.")]}
    reasoner = ["", missing("rent rise"), "", found("50,400", "by 5 percent")]
    assert assistant([call("rent"), call("rent rise")], reasoner, hits).ask("What is the rent now?").answered


class Following(FakeRetriever):
    """Reads the first two of its passages first."""

    def follow(self, query, k):
        found = self.search(query, k)
        return found[:2], found


@pytest.mark.parametrize(
    ("plains", "replies", "answer", "read"),
    [
        (["48,000 euros"], [], "48,000 euros", ["a", "b"]),
        (["not in the documents", "Ada Lind"], [], "Ada Lind", ["a", "b", "c"]),
        (["Yes"], ["", "", "by 5 percent"], "by 5 percent", ["a", "b"]),  # compared in vain, then thought about
        (
            ["Yes", "Ada Lind"],
            ["", "", "", {"words": [], "search": "chair"}],
            "Ada Lind",
            ["a", "b", "c"],
        ),
    ],
)
def test_two_documents_are_read_before_the_others(plains, replies, answer, read):
    it = assistant([call("rent")], replies, [])
    it.tool.retriever = it.retriever = Following([RENT, RISE, CHAIR])
    it.reasoner.model.plains = plains
    seen = []
    it.tool.on_event = lambda kind, details: kind == "read" and seen.extend(row.id for row in details["hits"])
    found = it.ask("What is the rent, or who chairs?")
    assert (found.answer, [row["id"] for row in found.steps[0]["read"]], seen) == (answer, read, read)


@pytest.mark.parametrize(
    ("checks", "answer", "read"),
    [
        (["Yes"], "48,000 euros", ["a", "b"]),
        (["No"], "48,000 euros", ["a", "b", "c"]),  # a doubt over the first two, none over the document that is cited
        (["No", {"Yes": 0.1, "No": 0.9}], NOT_FOUND, ["a", "b", "c"]),
    ],
)
def test_an_answer_that_the_reasoner_doubts_is_not_taken(checks, answer, read):
    it = assistant([call("rent"), {"action": "final_answer", "input": {"answer": "48,000"}}], [{"search": "sum"}], [])
    it.tool.retriever = it.retriever = Following({"What is it?": [RENT, RISE, CHAIR], "sum": [hit("s", "A sum.")]})
    it.reasoner.model.plains, it.reasoner.model.checks = ["48,000 euros"] * 2, list(checks)
    found = it.ask("What is it?")
    assert (found.answer, [row["id"] for row in found.steps[0]["read"]]) == (answer, read)
    assert found.answered or (found.sources, found.steps[0]["verdict"]["better_query"]) == ([], "sum")


def test_a_doubt_is_over_what_the_answer_cites():
    more_rent = [hit(f"r{n}", f"Paragraph {n} of the lease.") for n in range(4)]
    it, asked = assistant([call("rent")], [], [RISE, CHAIR, *more_rent, RENT]), []
    it.reasoner.doubt = lambda question, hits, notes, sure: asked.append(([row.id for row in hits], sure))
    it.reasoner.model.plains = ["48,000 euros and Ada Lind"]
    assert it.ask("What is it?", k=9).answered
    assert asked == [(["a", "r0", "r1", "c"], SURE_ALONE)], "the quotes first, a third of k of each document at most"


def test_a_doubt_about_a_choice_is_over_all_that_was_read():
    it, asked = assistant([call("chair")], ["no sides", "She chairs the board.", "Ada Lind"], [RISE, CHAIR, RENT]), []
    it.reasoner.doubt = lambda question, hits, notes: asked.append([row.id for row in hits])
    it.reasoner.model.plains = ["Ada Lind"]
    assert it.ask("Who chairs the board, Ada Lind or Olaf Moor?").answer == "Ada Lind"
    assert asked == [["b", "c", "a"]]


def test_a_reasoning_model_reads_all_at_once():
    it = assistant([call("rent")], ["", found("48,000 euros", "48,000 euros")], [])
    it.reasoner.stand_in, it.tool.retriever = False, Following([RENT, RISE, CHAIR])
    assert [row["id"] for row in it.ask("What is the rent?").steps[0]["read"]] == ["a", "b", "c"]


def test_plain_rag_reads_what_the_search_finds():
    it = assistant([], [], [])
    it.retriever, it.primary = Following([RENT, RISE, CHAIR]), FakeChat("48,000")
    assert [row["id"] for row in it.ask("Rent?", "rag", k=1).steps[0]["read"]] == ["a"]


class Knowing(FakeRetriever):
    """Has a document about Ada and one about Turku."""

    def about(self, answer, query, k):
        return [hit(name, text, name) for name, text in ABOUT.items() if name in answer and name not in query][:k]


ABOUT = {"Ada Lind": "Ada Lind was born in Turku.", "Turku": "Turku lies on the Aura."}


@pytest.mark.parametrize(
    ("question", "sights", "answer", "read"),
    [
        ("Who chairs it?", ["Ada Lind", "Ada Lind"], "Ada Lind", ["b", "Ada Lind"]),
        (
            "Where was its chair born?",
            ["Ada Lind", "Turku", "not in the documents"],
            "Turku",
            ["b", "Ada Lind", "Turku"],
        ),
        (
            "On which river was its chair born?",
            ["Ada Lind", "Turku", "the Aura"],
            "the Aura",
            ["b", "Ada Lind", "Turku"],
        ),
    ],
)
def test_what_an_answer_names_is_read(question, sights, answer, read):
    it = assistant([call(question)], [], [])
    it.tool.retriever = Knowing([hit("b", "The chair is Ada Lind.", "minutes.pdf")])
    it.reasoner.model.sights = sights
    found = it.ask(question)
    assert (found.answer, [row["id"] for row in found.steps[0]["read"]]) == (answer, read)
    quotes = {"minutes.pdf": "The chair is Ada Lind.", **ABOUT}
    assert all(quotes[source["source"]] == source["quote"] for source in found.sources) and found.sources


def test_a_document_that_the_question_names_is_no_link_of_a_chain():
    it = assistant([call("Who?")], ["no sides", "", "Ada Lind"], [])  # it thinks, for that is a choice
    it.tool.retriever = Knowing([hit("b", "The chair is Ada Lind.", "minutes.pdf")])
    it.reasoner.model.sights = ["Ada Lind"]
    found = it.ask("Does Ada Lind or Bo Lund chair it?")
    assert (found.answer, [row["id"] for row in found.steps[0]["read"]]) == ("Ada Lind", ["b"])


def test_answers_that_lead_back_to_each_other_end_the_reading():
    it = assistant([call("Where?")], [], [])
    it.tool.retriever = Knowing([hit("b", "The chair is Ada Lind.", "minutes.pdf")])
    it.reasoner.further = lambda question, verdict, hits: replace(
        verdict, answer="Turku" if verdict.answer == "Ada Lind" else "Ada Lind"
    )
    it.reasoner.model.sights = ["Ada Lind"]
    assert it.ask("Where was its chair born?").answer == "Turku"


def test_an_invented_answer_is_no_part_of_the_conversation():
    reply = {"action": "final_answer", "input": {"answer": "Paris"}}
    bye = {"action": "final_answer", "input": {"answer": "Good bye"}}
    it = assistant([call("capital"), reply, bye], ["", missing("France"), "", missing("Paris")], {})
    it.retriever.hits = {"What is the capital of France?": [RENT], "France": [RISE]}
    assert it.ask("What is the capital of France?", follow_up=True).answer == NOT_FOUND
    assert it.ask("Good bye!", follow_up=True).answer == "Good bye"
    assert "Paris" not in str(it.primary.asked[-1]) and NOT_FOUND in str(it.primary.asked[-1])


def test_a_reasoning_model_is_left_to_read_the_whole_chain():
    it = assistant([call("Born?")], ["", found("Ada Lind", "The chair is Ada Lind")], [])
    it.reasoner.stand_in, it.tool.retriever = False, Knowing([hit("b", "The chair is Ada Lind.", "minutes.pdf")])
    assert it.ask("Where was its chair born?").answer == "Ada Lind"


def test_passages_that_do_not_state_it_are_not_thought_about():
    hits = {"What is the rent now?": [RENT], "rent rise": [RENT, RISE]}
    it = assistant(
        [call("rent"), call("rent rise")], [{"search": "rent rise"}, "", found("50,400", "by 5 percent")], hits
    )
    it.reasoner.model.checks = ["No"]
    answer = it.ask("What is the rent now?")
    assert answer.answered and [step["verdict"]["sufficient"] for step in answer.steps] == [False, True]
    assert "better query: rent rise" in it.primary.asked[1]["messages"][-1]["content"]
    assert (it.reasoner.model.checked, len(it.reasoner.model.asked)) == (3, 4)


def test_the_first_search_and_every_answer_are_for_the_question_as_it_was_asked():
    for first in (call("rent sum"), {"action": "rag_with_reasoner", "input": {"question": ""}}):
        it = assistant([first, call("rent sum")], ["", missing("rent sum"), "", found("48,000", "48,000")], [RENT])
        it.retriever.hits = {"How much is the rent?": [RISE], "rent sum": [RENT]}
        it.ask("How much is the rent?")
        assert it.retriever.queries == ["How much is the rent?", "rent sum", "rent sum"]
        assert "Question: How much is the rent?" in it.reasoner.model.asked[0]["messages"][-1]["content"]
        assert "Question: How much is the rent?" in it.reasoner.model.asked[3]["messages"][-1]["content"]


def test_a_question_that_stands_alone_is_not_written_down_again():
    first = {"action": "rag_with_reasoner", "input": {}}
    it = assistant([first, call("rise"), call("What is the rent?")], ["", missing("rise")] * 3, {})
    it.retriever.hits = {"How much is the rent?": [RENT], "rise": [RISE], "What is the rent?": [RENT]}
    it.ask("How much is the rent?", max_steps=2)
    it.ask("And what is it?", follow_up=True, max_steps=1)
    asked = ["question" in str(call["schema"]) for call in it.primary.asked]
    assert asked == [False, True, True], "better queries and follow-ups are the model's own words"
    looked_up = tried = "rise"
    asked = ["How much is the rent?", looked_up, tried, looked_up, "What is the rent?", looked_up]
    assert it.retriever.queries == asked


def test_plain_answers_from_passages_that_are_handed_over():
    it = assistant(["48,000"], [], [RISE])
    answer = it.ask("Rent?", mode="rag", hits=[RENT])
    assert (answer.answer, answer.sources[0]["source"], it.retriever.queries) == ("48,000", "lease.pdf", [])
    assert "The rent is 48,000 euros" in it.primary.asked[0]["messages"][-1]["content"]


def test_what_the_documents_do_not_hold_is_not_answered_from_memory():
    primary = [call("capital of France"), {"action": "final_answer", "input": {"answer": "Paris"}}]
    answer = assistant(primary, ["", missing("France")], [RENT]).ask("What is the capital of France?")
    assert (answer.answer, answer.answered, answer.sources, answer.state) == (NOT_FOUND, False, [], "not_found")


def test_passages_that_speak_of_something_else_are_not_read():
    far, near = (replace(RENT, id=str(s), similarity=s) for s in (FAR - 0.05, FAR + 0.05))
    it = assistant([call("tungsten"), call("wolfram"), call("metal")], [], [far, replace(RISE, similarity=None)])
    answer = it.ask("What is the melting point of tungsten?")
    assert (answer.answer, answer.answered, it.reasoner.model.asked) == (NOT_FOUND, False, [])
    assert assistant([call("rent")], ["", found("48,000", "48,000")], [far, near]).ask("Rent?").answered


def test_passages_that_nobody_read_can_be_found_again():
    far, near = replace(RENT, similarity=FAR - 0.05), replace(RENT, similarity=FAR + 0.05)
    hits = {"Miete?": [far], "rent": [near]}
    it = assistant([call("Miete?"), call("rent")], ["", found("48,000", "48,000")], hits)
    it.reasoner.stand_in = False
    assert it.ask("Miete?").answer == "48,000"


NEW = {"Who?": [RENT], "b": [RISE], "c": [CHAIR], "d": [hit("d", "x")]}  # each search finds something new


def test_after_the_last_step_no_model_is_asked():
    it = assistant([call("a"), call("b"), call("c")], ["", missing("b"), "", missing("c"), "", missing("d")], NEW)
    answer = it.ask("Who?")
    assert (answer.answered, answer.state, answer.answer) == (False, "max_steps", NOT_FOUND)
    assert len(it.primary.asked) == 3


def test_running_out_of_steps_leaves_no_wish_to_retry_in_the_conversation():
    it = assistant(
        [call("a"), call("b"), call("c"), {"action": "final_answer", "input": {"answer": "Hello"}}],
        ["", missing("b"), "", missing("c"), "", missing("d")],
        NEW,
    )
    it.ask("Who?", follow_up=True)
    assert it.ask("Good morning!", follow_up=True).state == "conversation"
    assert "retry" not in str(it.primary.asked[-1])


def test_a_model_that_makes_no_call_has_not_answered():
    """As behind a server that takes no notice of the schema."""
    it = assistant([{"name": "rag_with_reasoner", "arguments": {"question": "rent"}}] * 3, [], [RENT])
    answer = it.ask("Who?")
    assert (answer.answered, answer.state, answer.answer) == (False, "max_steps", NOT_FOUND)


def test_half_of_a_surrogate_pair_in_a_question_reaches_no_model():
    it = assistant([call("rent?")], ["", found("48,000 euros", "48,000 euros")], [RENT])
    assert it.ask("Rent\udc80").answered and it.retriever.queries[0] == "Rent?"


def test_an_empty_call_is_told_to_the_model_and_not_to_the_user():
    it = assistant([call(ALONE), call("rent")], ["", found("48,000", "48,000")], [RENT])
    assert it.ask("Rent?", follow_up=True).answer == "48,000"


@pytest.mark.parametrize("fault", [KitError("The index cannot be read."), RuntimeError("Error finding id")])
def test_a_search_that_fails_ends_the_run_and_nothing_is_answered_from_memory(fault, monkeypatch):
    it = assistant([call("rent?"), {"action": "final_answer", "input": {"answer": "It is 900 euros."}}], [], [RENT])

    def broken(query, k):
        raise fault

    monkeypatch.setattr(it.retriever, "search", broken)
    with pytest.raises(KitError, match=str(fault)):
        it.ask("What is the rent?")
    assert len(it.primary.asked) == 1 and it.agent.memory.steps == []


def test_one_question_is_answered_at_a_time():
    asking, answers = threading.Event(), {}

    class Held(FakeRetriever):
        def search(self, query, k):
            if query == "first?":
                asking.set()
                time.sleep(0.2)
            return super().search(query, k)

    replies = [call("a"), call("b")], ["", found("one", "The"), "", found("two", "The")]
    it = Assistant(PROFILES["ci"], *(FakeChat(*of) for of in replies), Held([RENT]))
    worker = threading.Thread(target=lambda: answers.update(first=it.ask("first?")))
    worker.start()
    asking.wait()
    answers["second"] = it.ask("second?")
    worker.join()
    assert [answers[name].steps[0]["query"] for name in ("first", "second")] == ["first?", "second?"]
    assert [answers[name].answer for name in ("first", "second")] == ["one", "two"]


def test_stopping_leaves_no_trace_for_the_next_call():
    it = assistant([call("a"), "Hello."], ["", found("48,000", "48,000")], [RENT])
    it.cancel()  # nothing is being answered
    search = it.retriever.search
    it.retriever.search = lambda query, k: it.cancel() or search(query, k)
    with pytest.raises(Cancelled):
        it.ask("Rent?")
    assert it.primary.complete([{"role": "user", "content": "Hello"}]).text == "Hello."


@pytest.mark.parametrize("wrong", [{"question": " "}, {"query": "rent"}, {}])
def test_a_model_whose_call_goes_wrong_does_not_answer_from_memory(wrong):
    hello, invented = ({"action": "final_answer", "input": {"answer": text}} for text in ("Hello!", "It is 900."))
    it = assistant([hello, {"action": "rag_with_reasoner", "input": wrong}, invented], [], [RENT])
    it.ask("Hello")
    answer = it.ask("And now?", follow_up=True)
    assert (answer.answered, answer.state, answer.answer) == (False, "not_found", NOT_FOUND)


def test_plain_answers_are_part_of_a_conversation():
    it = assistant(["48,000"], [], [RENT])
    answer = asdict(it.ask("Rent?", "rag"))
    it.remember("Rent?", answer)
    assert "48,000" in str(it.agent.write_memory_to_messages()[-1])


def test_a_search_that_finds_nothing_new_costs_no_reasoning():
    it = assistant([call("a"), call("b"), call("c")], ["", missing("b")], [RENT])
    assert not it.ask("Who?").answered
    assert len(it.reasoner.model.asked) == 3


def test_a_greeting_makes_no_tool_call():
    it = assistant([{"action": "final_answer", "input": {"answer": "Hello!"}}], [], [RENT])
    answer = it.ask("Good morning!")
    assert (answer.answer, answer.state, answer.steps, it.retriever.queries) == ("Hello!", "conversation", [], [])


def test_a_follow_up_keeps_the_conversation_and_a_new_question_does_not():
    primary = [call("Who chairs?"), call("When was Ada Lovelace elected?"), call("fresh")]
    it = assistant(
        primary,
        ["", found("Ada Lovelace", "The"), "", found("2021", "The"), "", found("x", "The re")],
        [RENT],
    )
    it.ask("Who chairs?", follow_up=True)
    it.ask("When was she elected?", follow_up=True)
    asked = it.primary.asked[1]["messages"]
    assert {"role": "tool", "content": "Ada Lovelace"} in asked
    assert asked[-1]["content"].endswith(ALONE) and ALONE not in str(asked[:-1])
    assert ALONE not in str(it.agent.write_memory_to_messages()), "the conversation holds what the user said"
    said = it.reasoner.model.asked[3]["messages"][-1]["content"]
    assert "Question: When was Ada Lovelace elected?" in said, "the wording that stands alone is what is answered"
    it.ask("Something else?")
    assert len(it.primary.asked[2]["messages"]) == 2


def test_the_wish_for_a_whole_question_is_not_searched_for():
    it = assistant([call("Who chairs?"), call(f"And since when? {ALONE}")], ["", found("A", "The")] * 2, [RENT])
    it.ask("Who chairs?", follow_up=True)
    it.ask("And since when?", follow_up=True)
    assert it.retriever.queries[-1] == "And since when?"


def test_a_fault_of_the_engine_is_not_an_observation():
    broken = KitError("Ollama does not answer; run `kit doctor`.")
    with pytest.raises(KitError, match="does not answer"):
        assistant([call("x")], [broken], [RENT]).ask("Who?")
    with pytest.raises(KitError, match="does not answer"):
        assistant([broken], [], [RENT]).ask("Who?")


def test_a_question_without_an_answer_is_no_part_of_the_conversation():
    it = assistant(
        [call("Who chairs?"), KitError("too long"), call("Since when?")], ["", found("A", "The")] * 2, [RENT]
    )
    it.ask("Who chairs?", follow_up=True)
    kept = len(it.agent.memory.steps)
    with pytest.raises(KitError, match="too long"):
        it.ask("word " * 500, follow_up=True)
    assert len(it.agent.memory.steps) == kept
    it.ask("And since when?", follow_up=True)
    assert "word word" not in str(it.primary.asked[-1])


@pytest.mark.parametrize(
    ("question", "mode", "said"),
    [("", "agentic", "empty"), ("  \n", "rag", "empty"), ("x" * 100_000, "agentic", "100000"), ("q", "magic", "magic")],
)
def test_wrong_use_is_one_sentence(question, mode, said):
    with pytest.raises(KitError, match=said):
        assistant([], [], []).ask(question, mode)


def test_the_plainer_modes():
    it = assistant(
        ["I do not know.", "I don't know.", "", "48,000 euros"], ["", found("48,000", "48,000 euros")], [RENT]
    )
    assert not any(it.ask("Rent?", "closed").answered for _ in range(3))
    assert it.ask("Rent?", "rag").sources == [{"source": "lease.pdf", "page": 1, "quote": ""}]
    reasoned = it.ask("Rent?", "reasoner")
    assert reasoned.answered and reasoned.usage["calls"] == 6 and len(reasoned.steps) == 1


def test_closed_book_needs_no_index():
    it = Assistant(PROFILES["ci"], FakeChat("Oslo"), FakeChat(), None)
    assert it.ask("Where?", "closed").answer == "Oslo"


def test_two_assistants_share_nothing():
    one, two = (assistant([call("x")], ["", found("A", "The")], [RENT]) for _ in range(2))
    one.ask("Who?", follow_up=True)
    assert two.tool.steps == [] and two.agent.memory.steps == []


def test_the_system_prompt_is_short():
    assert len(SYSTEM.split()) * 1.5 < 400, "words to tokens, generously; the real count is tested with the real model"
