"""Budget forcing, with a writer by hand and over both protocols."""

import pytest

from kit import finetune, forcing
from kit.config import KitError
from kit.forcing import chatml, force
from kit.reasoner import ANSWER


class Writer:
    """Writes `pieces` in turn, each with one token a word, and keeps what it was asked."""

    def __init__(self, *pieces):
        self.pieces, self.asked = list(pieces), []

    def __call__(self, text, most, stops):
        self.asked.append((text, most, stops))
        words = self.pieces.pop(0).split(" ")[:most]
        return " ".join(words), len(words)


def test_thoughts_that_use_up_the_budget_are_cut_and_the_answer_is_begun():
    write = Writer("one two three four five", '48,000" and more')
    forced = force(write, "P", ANSWER, budget=3)
    assert (forced.thinking, forced.tokens, forced.extended) == ("one two three", 3, 0)
    assert write.asked[1][0] == f"Pone two three\n\n{ANSWER}" and forced.answer.startswith("48,000")


def test_an_early_end_is_replaced_by_a_word_a_set_number_of_times():
    write = Writer("one two", "three", "four", "48,000")
    forced = force(write, "P", ANSWER, budget=20, extensions=2)
    assert [asked[0] for asked in write.asked[:3]] == ["P", "Pone two Wait,", "Pone two Wait,three Wait,"]
    assert forced.extended == 2 and forced.tokens == 6 and forced.answer == "48,000"
    assert [asked[1] for asked in write.asked[:3]] == [20, 17, 15], "what is left of the budget"


def test_without_a_budget_nothing_is_thought():
    write = Writer("48,000")
    assert force(write, "P", ANSWER, budget=0).thinking == "" and write.asked[0][0] == f"P{ANSWER}"


def test_thoughts_end_where_the_model_begins_its_answer():
    write = Writer("one", "48,000")
    force(write, "P", ANSWER, budget=9)
    assert "The answer in a few words" in write.asked[0][2] and "</think>" in write.asked[0][2]


def test_the_text_is_the_one_that_is_trained_on():
    import jinja2

    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    template = jinja2.Environment().from_string(
        finetune.CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    assert template.render(messages=messages, add_generation_prompt=True).rstrip("\n") == chatml(messages).rstrip("\n")


def test_ollama_is_asked_raw_and_may_not_cut(scripted):
    server = scripted({"json": {"response": "thought", "eval_count": 2}})
    assert forcing.ollama(server.url, "lean", 8192)("text", 5, ["x"]) == ("thought", 2)
    sent = server.requests[0]
    assert (sent["raw"], sent["truncate"], sent["shift"], sent["options"]["num_predict"]) == (True, False, False, 5)


def test_any_completion_endpoint_does(scripted):
    server = scripted({"json": {"choices": [{"text": "thought"}], "usage": {"completion_tokens": 2}}})
    assert forcing.completions(server.url, "lean", "key")("text", 5, ["x"]) == ("thought", 2)
    assert server.requests[0]["max_tokens"] == 5 and server.requests[0]["prompt"] == "text"


def test_a_server_that_refuses_or_is_not_there_is_named(scripted, free_port):
    server = scripted({"status": 400, "json": {"error": "too long"}})
    with pytest.raises(KitError, match="too long"):
        forcing.ollama(server.url, "lean", 8192)("text", 5, [])
    with pytest.raises(KitError, match="does not answer"):
        forcing.ollama(f"http://127.0.0.1:{free_port}", "lean", 8192)("text", 5, [])
