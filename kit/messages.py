"""Messages in the form that a server takes them, and what a model's text becomes again.

smolagents writes tool calls and their results into the text of its messages; the chat protocols have roles for them.
"""

import ast
import json
import re
import uuid

from pydantic_core import from_json
from smolagents.models import get_tool_json_schema

from kit.config import KitError

CONTROL = re.compile(r"<\|[^|>]*\|>|</?think>|<｜[^｜>]*｜>")  # what models read as structure and not as text


def inert(value):
    """Text, or what holds texts, without control tokens: nobody's words can end a turn or begin one."""
    if isinstance(value, str):
        return CONTROL.sub(" ", value)
    if isinstance(value, dict):
        return {key: inert(part) for key, part in value.items()}
    return [inert(part) for part in value] if isinstance(value, list) else value


def split_thoughts(text: str) -> tuple[str, str]:
    """`(thoughts, answer)` of a reply that writes `<think>…</think>` into its text."""
    head, tag, tail = text.partition("</think>")
    if tag:
        return head.replace("<think>", "").strip(), tail.strip()
    # A budget that ended in mid-thought leaves no closing tag.
    return (text.strip().removeprefix("<think>").strip(), "") if text.lstrip().startswith("<think>") else ("", text)


def object_schema(**properties: dict) -> dict:
    """The JSON schema of an object that has all of these properties and no other, in this order."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def tool_call_schema(tools: list) -> dict:
    """A JSON schema that only a call of one of `tools` satisfies.

    The keys are `action` and `input`, not `name` and `arguments`: a grammar may write them in
    alphabetical order, and the choice of the tool has to come first. Inputs that a tool names in `given`
    are not asked for: whoever runs it has them.
    """
    calls = []
    for tool in tools:
        function, given = get_tool_json_schema(tool)["function"], getattr(tool, "given", ())
        arguments = function["parameters"] | {"additionalProperties": False}
        # smolagents' own final_answer takes "any", which becomes a string here.
        arguments["properties"] = {k: {"type": v["type"]} for k, v in arguments["properties"].items() if k not in given}
        arguments["required"] = [name for name in arguments["required"] if name not in given]
        calls.append(object_schema(action={"const": function["name"]}, input=arguments))
    return {"anyOf": calls} if len(calls) > 1 else calls[0]


def read_json(text: str) -> dict:
    """The object in a schema-held reply, also where the budget cut it off in the middle."""
    refused = f"The model's reply is no JSON object ({text[:80]!r}); use a model or server that holds to a schema."
    try:
        found = from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError as error:
        raise KitError(refused) from error
    if not isinstance(found, dict):
        raise KitError(refused)
    return found


def tool_call(text: str) -> dict:
    """The tool call that a reply held to `tool_call_schema` is."""
    call = read_json(text)
    function = {"name": call.get("action", ""), "arguments": call.get("input", {})}
    return {"id": uuid.uuid4().hex, "type": "function", "function": function}


def native_message(message) -> dict:
    """A smolagents message as the chat protocol has it: tool calls and tool results in their own roles."""
    role, text = _role_and_text(message)
    if role == "tool-call":  # smolagents writes the calls as a Python literal behind a headline
        calls = ast.literal_eval(text.removeprefix("Calling tools:\n"))
        return {"role": "assistant", "content": "", "tool_calls": [{"function": c["function"]} for c in calls]}
    if role == "tool-response":
        observed = text.startswith("Observation:\n")  # else an error, whose call smolagents leaves out
        return {"role": "tool" if observed else "user", "content": text.removeprefix("Observation:\n")}
    return {"role": role, "content": text.removeprefix("New task:\n")}


def text_message(message) -> dict:
    """A smolagents message for a model that is offered no tools: calls and results are plain turns of the conversation.

    That is how a `CodeAgent` talks, whose "calls" are Python code.
    """
    role, text = _role_and_text(message)
    return {"role": {"tool-call": "assistant", "tool-response": "user"}.get(role, role), "content": text}


def _role_and_text(message) -> tuple[str, str]:
    """Role and text of a message, which is a dict or smolagents' own record; its text may come in parts."""
    if isinstance(message, dict):
        role, content = message["role"], message["content"]
    else:
        role, content = message.role, message.content
    text = content if isinstance(content, str) else "\n".join(p.get("text", "") for p in content or [])
    return getattr(role, "value", role), text


def with_call_ids(message: dict, position: int) -> dict:
    """Tool calls and results as OpenAI's protocol wants them: paired by an id, arguments as text.

    A result stands right behind its call, so the call's position in the history serves as the id.
    """
    if message["role"] == "tool":
        return message | {"tool_call_id": f"call_{position - 1}"}
    if calls := message.get("tool_calls"):
        functions = [c["function"] | {"arguments": json.dumps(c["function"]["arguments"])} for c in calls]
        return message | {
            "tool_calls": [{"id": f"call_{position}", "type": "function", "function": f} for f in functions]
        }
    return {k: v for k, v in message.items() if k != "thinking"}
