"""The terminal chat: its commands, and that an error does not end it."""

import io

from fakes import FakeChat, FakeRetriever, call, found, hit

from kit.agent import Assistant
from kit.chat import format_answer, format_sources, terminal
from kit.config import PROFILES, KitError

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
    said = talk(["Rent?", "/sources", "/steps", "/quit"], [call("rent")], ["", found("48,000", "48,000 euros")])
    assert "48,000\n" in said and "lease.pdf, page 1: “48,000 euros”" in said and "search “rent”" in said
    assert "2 model calls" not in said and "3 model calls" in said


def test_before_the_first_answer_and_unknown_commands():
    said = talk(["/sources", "/nonsense", "", "^C"], [], [])
    assert "There is no answer yet." in said and said.count("/quit") == 2


def test_an_error_is_a_sentence_and_the_conversation_goes_on():
    said = talk(["Rent?", "Rent?"], [KitError("Ollama is away."), call("r")], ["", found("48,000", "48,000")])
    assert "Ollama is away.\n" in said and "48,000\n" in said


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
    assert "30 tokens read · 15 written" in text
