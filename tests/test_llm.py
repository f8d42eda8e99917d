"""The chat clients over a scripted server: what is sent, what comes back, and what is refused."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from fakes import SearchTool
from smolagents import ChatMessage, FinalAnswerTool, MessageRole

from kit.config import PROFILES, KitError
from kit.llm import (
    Cancelled,
    ContextOverflow,
    OllamaModel,
    OpenAIModel,
    chat_model,
)

DONE = {
    "message": {"content": ""},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 12,
    "eval_count": 3,
    "load_duration": 1e8,
    "prompt_eval_duration": 2e9,
    "eval_duration": 1e9,
}


def ollama(server, **limits) -> OllamaModel:
    return OllamaModel("kit-test", server.url, num_ctx=8192, **limits)


def say(*pieces: str, kind: str = "content") -> list[dict]:
    return [*({"message": {kind: piece}, "done": False} for piece in pieces), DONE]


def test_a_reply_is_put_together_and_its_cost_added_up(scripted):
    server = scripted({"lines": say("Ber", "lin")}, {"lines": say("Oslo")})
    model, heard = ollama(server), []
    model.on_text = lambda kind, piece: heard.append((kind, piece))
    reply = model.complete([{"role": "user", "content": "Where?"}])
    with model.heard_by(None):
        model.complete([{"role": "user", "content": "And now?"}])
    assert (reply.text, reply.finish) == ("Berlin", "stop")
    assert [piece for piece in heard if piece[1]] == [("text", "Ber"), ("text", "lin")], "and nothing of the quiet one"
    assert (model.usage.calls, model.usage.prompt_tokens, model.usage.output_tokens) == (2, 24, 6)
    assert model.usage.engine_seconds == pytest.approx(6.0) and model.usage.load_seconds == pytest.approx(0.2)
    model.complete([{"role": "user", "content": "Where?"}])
    assert heard[-1] == ("text", "Oslo"), "heard again"


def test_every_call_forbids_the_silent_cut_and_the_shift(scripted):
    server = scripted({"lines": say("x")})
    ollama(server, max_tokens=7).complete([{"role": "user", "content": "q"}], schema={"type": "string"})
    sent = server.requests[0]
    assert sent["truncate"] is False and sent["shift"] is False
    assert sent["options"]["num_predict"] == 7 and sent["options"]["temperature"] == 0
    assert "num_ctx" not in sent["options"], "the window is the Modelfile's; another would reload the model"
    assert sent["format"] == {"type": "string"} and "tools" not in sent


def test_the_likeliest_first_tokens_are_told(scripted):
    said = say("Yes", ".")
    said[0]["logprobs"] = [{"token": "Yes", "top_logprobs": [{"token": "Yes", "logprob": 0.0}]}]
    said[1]["logprobs"] = [{"token": ".", "top_logprobs": [{"token": ".", "logprob": 0.0}]}]
    server = scripted({"lines": said})
    reply = ollama(server).complete([{"role": "user", "content": "q"}], likeliest=8)
    assert reply.first == {"Yes": 1.0} and server.requests[0]["top_logprobs"] == 8 and server.requests[0]["logprobs"]


def test_the_openai_client_tells_the_likeliest_first_tokens_too(scripted):
    def choice(token, **more):
        shares = {"token": token, "logprob": 0.0, "top_logprobs": [{"token": token, "logprob": 0.0}]}
        return {"choices": [{"index": 0, "delta": {"content": token}, "logprobs": {"content": [shares]}, **more}]}

    server = scripted({"sse": [choice("Yes"), choice(".", finish_reason="stop")]})
    model = OpenAIModel("some/model", server.url + "/v1", "secret")
    reply = model.complete([{"role": "user", "content": "q"}], likeliest=8)
    assert reply.first == {"Yes": 1.0} and server.requests[0]["top_logprobs"] == 8 and server.requests[0]["logprobs"]


def test_thoughts_are_kept_apart(scripted):
    server = scripted({"lines": [*say("hm", kind="thinking")[:-1], *say("42")]})
    reply = ollama(server).complete([{"role": "user", "content": "q"}], think=True)
    assert (reply.thinking, reply.text) == ("hm", "42")
    assert server.requests[0]["think"] is True


def test_a_prompt_that_does_not_fit_raises_with_both_numbers(scripted):
    body = {"error": "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it"}
    with pytest.raises(ContextOverflow) as caught:
        ollama(scripted({"status": 400, "json": body})).complete([{"role": "user", "content": "q"}])
    assert (caught.value.prompt_tokens, caught.value.window) == (9001, 8192)


def test_a_cancelled_call_closes_the_connection(scripted):
    server = scripted({"lines": say(*["x"] * 200), "pause": 0.05})
    model = ollama(server)
    threading.Timer(0.4, model.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        model.complete([{"role": "user", "content": "q"}])
    assert time.monotonic() - started < 2
    assert server.hung_up.wait(2), "the server still has its client: it would go on generating"


def test_an_interrupt_in_the_middle_of_an_answer_ends_the_generation_and_the_next_call_is_clean(scripted):
    server = scripted({"lines": say(*["x"] * 200), "pause": 0.05}, {"lines": say("fine")})
    model = ollama(server)
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()  # what a notebook's stop button sends
    with pytest.raises(KeyboardInterrupt):
        model.complete([{"role": "user", "content": "q"}])
    assert server.hung_up.wait(2), "the server still has its client: it would go on generating"
    assert model.complete([{"role": "user", "content": "q"}]).text == "fine"


def test_a_call_before_its_first_token_can_be_cancelled_too(scripted):
    model = ollama(scripted({"hang": 5}))
    threading.Timer(0.3, model.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        model.complete([{"role": "user", "content": "q"}])
    assert time.monotonic() - started < 2


def test_tool_calls_come_from_the_schema_and_the_tool_is_chosen_first(scripted):
    reply = json.dumps({"action": "search", "input": {"question": "who?"}})
    server = scripted({"lines": say(reply)})
    message = ollama(server).generate(
        [ChatMessage(role=MessageRole.USER, content="who?")], tools_to_call_from=[SearchTool(), FinalAnswerTool()]
    )
    assert message.tool_calls[0].function.name == "search"
    assert message.tool_calls[0].function.arguments == {"question": "who?"}
    branches = server.requests[0]["format"]["anyOf"]
    assert [b["properties"]["action"]["const"] for b in branches] == ["search", "final_answer"]
    assert all(sorted(b["properties"])[0] == "action" for b in branches)


def test_a_call_cut_off_by_its_budget_still_parses(scripted):
    server = scripted({"lines": say('{"action": "search", "input": {"question": "who sig')})
    message = ollama(server).generate([], tools_to_call_from=[SearchTool()])
    assert message.tool_calls[0].function.arguments == {"question": "who sig"}


def test_streaming_gives_the_text_in_pieces_and_the_usage_last(scripted):
    server = scripted({"lines": say("Ber", "lin")})
    deltas = list(ollama(server).generate_stream([ChatMessage(role=MessageRole.USER, content="q")]))
    assert [d.content for d in deltas if d.content] == ["Ber", "lin"]
    assert deltas[-1].token_usage.output_tokens == 3


def test_leaving_a_stream_early_stops_the_generation(scripted):
    server = scripted({"lines": say(*["x"] * 200), "pause": 0.05})
    stream = ollama(server).generate_stream([ChatMessage(role=MessageRole.USER, content="q")])
    next(stream)
    stream.close()
    assert server.hung_up.wait(2)


def test_a_model_without_tools_hears_of_code_and_its_results_as_conversation(scripted):
    server = scripted({"lines": say("done")})
    code = """Calling tools:\n[{'id': '1', 'function': {'name': 'python_interpreter', 'arguments': '{x = 1}'}}]"""
    said, heard = (
        ChatMessage(role=role, content=[{"type": "text", "text": text}])
        for role, text in ((MessageRole.TOOL_CALL, code), (MessageRole.TOOL_RESPONSE, "Observation:\n1"))
    )
    ollama(server).generate([said, heard])
    messages = server.requests[0]["messages"]
    assert messages == [{"role": "assistant", "content": code}, {"role": "user", "content": "Observation:\n1"}]


def test_the_openai_client_sends_schema_and_budget_and_reads_usage(scripted):
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "<think>so</think>"}}]},
        {"choices": [{"index": 0, "delta": {"content": "Oslo"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}},
    ]
    server = scripted({"sse": chunks})
    model = OpenAIModel("some/model", server.url + "/v1", "secret", max_tokens=9)
    reply = model.complete([{"role": "user", "content": "q"}], schema={"type": "object"})
    assert (reply.text, reply.thinking, reply.usage.prompt_tokens) == ("Oslo", "so", 5)
    sent = server.requests[0]
    assert sent["max_tokens"] == 9 and sent["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_stream_that_ends_before_the_answer_is_no_answer(scripted):
    server = scripted({"sse": [{"choices": [{"index": 0, "delta": {"content": "Os"}}]}]})
    with pytest.raises(KitError, match="ended before the answer"):
        OpenAIModel("some/model", server.url + "/v1", "").complete([{"role": "user", "content": "q"}])


def test_a_choice_of_forms_is_put_into_an_object_for_servers_that_want_one_at_the_root(scripted):
    said = json.dumps({"reply": {"words": ["Oslo"]}})
    chunks = [{"choices": [{"index": 0, "delta": {"reasoning": "so", "content": said}, "finish_reason": "stop"}]}]
    server = scripted({"sse": chunks})
    forms = {"anyOf": [{"type": "object"}, {"type": "object"}]}
    reply = OpenAIModel("some/model", server.url + "/v1", "").complete([{"role": "user", "content": "q"}], schema=forms)
    assert (json.loads(reply.text), reply.thinking) == ({"words": ["Oslo"]}, "so")
    schema = server.requests[0]["response_format"]["json_schema"]["schema"]
    assert (schema["type"], schema["properties"], schema["additionalProperties"]) == ("object", {"reply": forms}, False)


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9257 tokens (9001 in the messages, "
        "256 in the completion).",
        "'max_tokens' is too large: 256. This model's maximum context length is 8192 tokens and your request has 9001 "
        "input tokens.",
        "request (9001 tokens) exceeds the available context size (8192 tokens), try increasing it",
    ],
)
def test_the_window_of_another_server_is_not_taken_for_the_budget_of_a_reply(scripted, said):
    server = scripted({"status": 400, "json": {"error": {"message": said, "code": 400}}})
    with pytest.raises(ContextOverflow) as caught:
        OpenAIModel("some/model", server.url + "/v1", "secret").complete([{"role": "user", "content": "q"}])
    assert caught.value.window == 8192 and caught.value.prompt_tokens > 9000


def test_the_openai_client_gives_tool_messages_the_ids_that_the_protocol_asks_for(scripted):
    server = scripted({"sse": [{"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]}]})
    history = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "search", "arguments": {"q": 1}}}]},
        {"role": "tool", "content": "nothing"},
    ]
    OpenAIModel("m", server.url + "/v1", "").complete(history)
    call, result = server.requests[0]["messages"]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"q": 1}


OK = {"sse": [{"choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]}]}


@pytest.mark.parametrize(
    ("provider", "below", "path", "header"),
    [
        ("openai", "/v1", "/v1/chat/completions", ("Authorization", "Bearer secret")),
        ("huggingface", "/v1", "/v1/chat/completions", ("Authorization", "Bearer secret")),
        ("azure", "", "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21", ("api-key", "secret")),
    ],
)
def test_each_provider_is_asked_in_its_own_form(scripted, monkeypatch, provider, below, path, header):
    server = scripted(OK)
    monkeypatch.setenv("MY_KEY", "secret")
    profile = replace(PROFILES["ci"], provider=provider, primary="my-gpt", base_url=server.url + below)
    profile = replace(profile, api_key_env="MY_KEY", api_version="2024-10-21" if provider == "azure" else "")
    assert chat_model(profile, "primary").complete([{"role": "user", "content": "q"}]).text == "ok"
    asked, headers = server.heads[0]
    assert (asked, headers[header[0]]) == (path, header[1]) and server.requests[0]["model"] == "my-gpt"


def test_a_provider_without_its_address_or_version_is_refused():
    for provider, base_url, missing in (("openai", "", "base_url"), ("azure", "http://here.test", "api_version")):
        profile = replace(PROFILES["ci"], provider=provider, base_url=base_url)
        with pytest.raises(KitError, match=f"provider {provider} and no {missing}"):
            chat_model(profile, "primary")
