"""The forms of messages, without a server."""

import pytest
from fakes import SearchTool
from smolagents import AgentLogger, AgentToolExecutionError, ChatMessage, MessageRole
from smolagents.memory import ActionStep
from smolagents.monitoring import Timing

from kit.config import KitError
from kit.messages import native_message, read_json, split_thoughts, tool_call_schema


def test_history_is_native():
    call = str([{"id": "1", "type": "function", "function": {"name": "search", "arguments": {"question": "it's"}}}])
    said = ChatMessage(role=MessageRole.TOOL_CALL, content=[{"type": "text", "text": "Calling tools:\n" + call}])
    heard = ChatMessage(role=MessageRole.TOOL_RESPONSE, content=[{"type": "text", "text": "Observation:\nnothing"}])
    assert native_message(said)["tool_calls"][0]["function"]["arguments"] == {"question": "it's"}
    assert native_message(heard) == {"role": "tool", "content": "nothing"}


def test_an_error_answers_no_call_for_smolagents_tells_of_none():
    error = AgentToolExecutionError("The question is empty.", AgentLogger())
    messages = ActionStep(step_number=1, timing=Timing(0.0), error=error).to_messages()
    assert [native_message(m)["role"] for m in messages] == ["user"]
    assert "The question is empty." in native_message(messages[0])["content"]


def test_thoughts_in_the_text_are_split_off():
    assert split_thoughts("<think>a</think>b") == ("a", "b")
    assert split_thoughts("<think>no end") == ("no end", "")
    assert split_thoughts("plain") == ("", "plain")


def test_an_input_that_is_given_is_not_asked_for():
    tool = SearchTool()
    asked = tool_call_schema([tool])["properties"]["input"]
    tool.given = tuple(asked["properties"])
    given = tool_call_schema([tool])["properties"]["input"]
    assert asked["properties"] and asked["required"] == list(asked["properties"])
    assert (given["properties"], given["required"], given["additionalProperties"]) == ({}, [], False)


def test_a_schema_for_one_tool_has_no_choice():
    assert tool_call_schema([SearchTool()])["properties"]["action"] == {"const": "search"}


@pytest.mark.parametrize("text", ["Certainly! Here is", "42", "null", '["words"]'])
def test_text_that_is_no_json_object_is_one_sentence(text):
    with pytest.raises(KitError, match="is no JSON object"):
        read_json(text)
