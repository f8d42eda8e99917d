"""A broken Ollama: each fault is one clear sentence, and none of them hangs."""

import pytest

from kit.config import KitError
from kit.llm import OllamaModel

ASK = [{"role": "user", "content": "q"}]


def model(url: str, seconds: float = 5) -> OllamaModel:
    return OllamaModel("kit-test", url, num_ctx=8192, seconds=seconds)


def test_absent(free_port):
    with pytest.raises(KitError, match=r"does not answer.*kit doctor"):
        model(f"http://127.0.0.1:{free_port}").complete(ASK)


def test_dies_in_the_middle_of_an_answer(scripted):
    server = scripted({"lines": [{"message": {"content": "Ber"}, "done": False}], "drop": True})
    with pytest.raises(KitError, match=r"does not answer.*kit doctor"):
        model(server.url).complete(ASK)


def test_ends_without_the_last_line(scripted):
    with pytest.raises(KitError, match="ended before the answer did"):
        model(scripted({"lines": [{"message": {"content": "Ber"}, "done": False}]}).url).complete(ASK)


@pytest.mark.parametrize("status", [400, 500])
def test_answers_with_an_error(scripted, status):
    with pytest.raises(KitError, match=f"answered {status}.*the runner broke.*kit doctor"):
        model(scripted({"status": status, "json": {"error": "the runner broke"}}).url).complete(ASK)


def test_an_error_in_the_stream(scripted):
    with pytest.raises(KitError, match="llama runner process has terminated"):
        model(scripted({"lines": [{"error": "llama runner process has terminated"}]}).url).complete(ASK)


def test_never_answers(scripted):
    with pytest.raises(KitError, match="no full answer within 1 s"):
        model(scripted({"hang": 6}).url, seconds=1).complete(ASK)


def test_writes_for_ever(scripted):
    endless = scripted({"lines": [{"message": {"content": "x"}, "done": False}] * 500, "pause": 0.05})
    with pytest.raises(KitError, match="no full answer within 1 s"):
        model(endless.url, seconds=1).complete(ASK)
    assert endless.hung_up.wait(2), "the generation was not stopped"


def test_a_model_that_was_not_made(scripted):
    with pytest.raises(KitError, match="kit setup"):
        model(scripted({"status": 404, "json": {"error": "model 'kit-test' not found"}}).url).complete(ASK)


def test_something_else_on_the_port(scripted):
    with pytest.raises(KitError, match="does not answer"):
        model(scripted({"text": "<html>hello</html>"}).url).complete(ASK)
