"""The chat in a terminal and in a notebook: its commands, and that an error does not end it."""

import io

from fakes import FakeChat, FakeRetriever, call, found, hit

from kit.agent import Assistant
from kit.chat import Panel, format_answer, format_sources, terminal
from kit.config import PROFILES, KitError
from kit.llm import Cancelled

RENT = hit("a", "The rent is 48,000 euros.")


def talk(lines: list[str], primary: list, reasoner: list) -> str:
    lines, out = iter(lines), io.StringIO()

    def ask(prompt: str) -> str:
        try:
            line = next(lines)
        except StopIteration:
            raise EOFError from None
        if line == "^C":
            raise KeyboardInterrupt
        return line

    terminal(Assistant(PROFILES["ci"], FakeChat(*primary), FakeChat(*reasoner), FakeRetriever([RENT])), ask, out)
    return out.getvalue()


def test_an_answer_its_sources_and_its_steps():
    said = talk(["Rent?", "/sources", "/steps", "/quit"], [call("rent")], ["", "48,000"])
    assert "48,000\n" in said and "lease.pdf, page 1: “The rent is 48,000 euros.”" in said and "search “Rent?”" in said
    assert "6 model calls" not in said and "7 model calls" in said


def test_before_the_first_answer_and_unknown_commands():
    said = talk(["/sources", "/nonsense", "", "^C"], [], [])
    assert "There is no answer yet." in said and said.count("/quit") == 2


def test_an_error_is_a_sentence_and_the_conversation_goes_on():
    said = talk(["Rent?", "Rent?"], [KitError("Ollama is away."), call("r")], ["", found("48,000", "48,000")])
    assert "Ollama is away.\n" in said and "48,000\n" in said


def test_what_comes_with_an_answer_is_chosen_and_the_history_is_kept():
    twice = ["", "48,000", "", "48,000"]
    lines = ["/history", "Rent?", "/show context", "Rent now?", "/context", "/history"]
    said = talk(lines, [call("rent"), call("rent now")], twice)
    assert "Nothing was said yet." in said and said.endswith("> Rent?\n48,000\n> Rent now?\n48,000\n")
    first, second = said.split("With every answer: context.")
    assert "Sources" not in first and "Sources" in second and second.count("\n    The rent is 48,000 euros.") == 2


def test_clear_forgets():
    primary = [call("a"), call("b")]
    reasoner = ["", found("one", "The"), "", found("two", "The")]
    model = FakeChat(*primary)
    assistant = Assistant(PROFILES["ci"], model, FakeChat(*reasoner), FakeRetriever([RENT]))
    lines = iter(["first", "/clear", "second", "/quit"])
    terminal(assistant, lambda _: next(lines), io.StringIO())
    assert len(model.asked[1]["messages"]) == 2


def test_dropped_quotes_are_said():
    assistant = Assistant(
        PROFILES["ci"], FakeChat(call("r")), FakeChat("", found("1", "no", "rent")), FakeRetriever([RENT])
    )
    text = format_sources(assistant.ask("Rent?"))
    assert "1 quotation not found word for word" in text


def test_a_full_answer_shows_cost():
    primary, reasoner = FakeChat(call("r")), FakeChat("", found("1", "48,000"))
    text = format_answer(Assistant(PROFILES["ci"], primary, reasoner, FakeRetriever([RENT])).ask("Rent?"))
    assert "80 tokens read · 40 written" in text


def panel(primary: list, reasoner: list, text: str = RENT.text) -> Panel:
    return Panel(Assistant(PROFILES["ci"], FakeChat(*primary), FakeChat(*reasoner), FakeRetriever([hit("a", text)])))


def test_the_panel_shows_the_answer_its_sources_and_what_it_cost():
    chat = panel([call("rent")], ["", found("48,000", "48,000 euros")])
    chat.question.value = " Rent? "
    chat.ask_button.click()
    chat._worker.join()
    shown = chat.conversation.value
    assert "<b>Rent?</b>" in shown and "<p>48,000</p>" in shown and "lease.pdf, page 1" in shown
    assert "7 model calls" in shown and (chat.question.value, chat.status.value) == ("", "")
    assert chat.stop_button.disabled and not chat.ask_button.disabled


def test_the_panel_shows_markup_as_text():
    chat = panel([call("r")], ["", found("<img src=x>", "<b>48</b>")], text="The rent is <b>48</b> euros.")
    chat.ask("<script>alert(1)</script>")
    assert not any(tag in chat.conversation.value for tag in ("<script", "<img", "<b>48"))
    assert "&lt;script&gt;" in chat.conversation.value and "&lt;b&gt;48" in chat.conversation.value


def test_the_panel_says_what_went_wrong_and_goes_on():
    chat = panel([KitError("Ollama is away."), call("r"), Cancelled()], ["", found("48,000", "48,000")])
    for question in ("one", "two", "three"):
        chat.ask(question)
    assert "<p>Ollama is away.</p>" in chat.conversation.value and "<p>48,000</p>" in chat.conversation.value
    assert chat.conversation.value.endswith("<p>Stopped.</p>")


def test_the_panel_holds_the_answer_to_its_last_question_and_no_other():
    chat = panel(
        [call("a"), KitError("Ollama is away."), call("b")], ["", found("one", "The"), "", found("two", "The")]
    )
    chat.ask("")
    assert chat.answer is None
    chat.question.value = "typed"
    chat.ask_button.click()
    chat.ask("second")  # after the one that was typed
    assert chat.answer is None and "<p>one</p>" in chat.conversation.value
    chat.ask("third")
    assert chat.answer.answer == "two"


def test_the_panel_shows_as_much_as_is_wanted():
    chat = panel([call("a"), call("b")], ["", found("one", "The"), "", found("two", "The")])
    chat.ask("first")
    assert "<details>" in chat.conversation.value and RENT.text not in chat.conversation.value
    chat.show.value = "context"
    chat.ask("second")
    assert "<details open>" in chat.conversation.value and RENT.text in chat.conversation.value


def test_the_panel_forgets():
    chat = panel([call("a"), call("b")], ["", found("one", "The"), "", found("two", "The")])
    chat.ask("first")
    chat.clear_button.click()
    chat.ask("second")
    assert "first" not in chat.conversation.value
    assert len(chat.assistant.primary.asked[1]["messages"]) == 2


def test_what_is_being_written_is_told_line_by_line():
    talk = panel([], []).talk
    talk._event("search", {"query": "rent & roof"})
    for piece in ("The rent", " is named."):
        talk._piece("text", piece)
    talk._event("read", {"hits": [RENT]})
    for piece in ("48", ",000", '{"words"', ': ["4'):
        talk._piece("text", piece)
    assert list(talk._said.queue) == [
        "searching: rent & roof",
        "The rent",
        "The rent is named.",
        "reading 1 passages",
        "48",
        "48,000",
        "checking it against the passages",
        "checking it against the passages",
    ]
