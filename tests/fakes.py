"""Hand-written stand-ins for the chat model and the retriever, and a small tool."""

import json
import re

import anyio
from smolagents import Tool

from kit.llm import ChatModel, Reply, Usage
from kit.reasoner import PLAIN, RESULT_TOKENS
from kit.retriever import Hit


class FakeChat(ChatModel):
    """Answers from a queue: strings are text, dicts become JSON, a tuple is several; `asked` keeps every request.

    Whether passages state an answer it says with the next of `checks` (a text, or a dict that says how likely the
    first words are), and yes when there is none; `checked` counts. Asked plainly by a reasoner it answers the next of
    `plains`, with its turn opened the next of `sights`; when there is none it declines, and says the same again.
    """

    def __init__(self, *replies, thinks: bool = False, checks=(), sights=(), plains=()):
        super().__init__("fake", max_tokens=100, seconds=5)
        self.checks, self.sights, self.plains, self.checked = list(checks), list(sights), list(plains), 0
        self.replies = [part for reply in replies for part in (reply if isinstance(reply, tuple) else (reply,))]
        self.asked, self.thinks, self.plain = [], thinks, ""

    async def _send(self, messages, schema, think, max_tokens, stop, likeliest) -> Reply:
        first = {}
        if likeliest:
            self.checked += 1
            reply = self.checks.pop(0) if self.checks else "Yes"
            reply, first = ("", reply) if isinstance(reply, dict) else (reply, {reply.split(" ")[0]: 1.0})
        elif messages[-1]["content"].endswith(PLAIN) and max_tokens == RESULT_TOKENS:
            reply = self.plains.pop(0) if self.plains else "Not in the documents."
            self.plain = "" if "Not in" in reply else reply
        elif messages[-1]["role"] == "assistant" and messages[-2]["content"].endswith(PLAIN):
            reply = self.sights.pop(0) if self.sights else self.plain
        else:
            self.asked.append({"messages": list(messages), "schema": schema, "think": think, "max_tokens": max_tokens})
            reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        text = reply if isinstance(reply, str) else json.dumps(reply)
        usage = Usage(calls=1, prompt_tokens=10, output_tokens=5, prompt_seconds=0.1, output_seconds=0.2)
        return Reply("" if think else text, text if think else "", usage, "stop", first)


class Typing(FakeChat):
    """Writes its replies a word at a time."""

    async def _send(self, *request):
        reply = await super()._send(*request)
        for word in re.findall(r"\S+\s*", reply.text):
            self.on_text and self.on_text("text", word)
            await anyio.sleep(0.05)
        return reply


class FakeRetriever:
    """Returns the hits that stand under a query (a dict), or the same for every query (a list)."""

    def __init__(self, hits):
        self.hits, self.queries, self.seconds = hits, [], 0.0

    def search(self, query: str, k: int) -> list[Hit]:
        self.queries.append(query)
        self.seconds += 0.01
        return (self.hits if isinstance(self.hits, list) else self.hits.get(query, []))[:k]


def hit(id: str, text: str, source: str = "lease.pdf", page: int | None = 1) -> Hit:
    return Hit(id=id, source=source, page=page, score=0.5, text=text)


def call(query: str) -> dict:
    """The primary model's call of the tool."""
    return {"action": "rag_with_reasoner", "input": {"question": query}}


def found(result: str, *quotes: str) -> tuple:
    """The reasoner's answer, and the verdict on it."""
    return result, {"words": list(quotes)}


def missing(search: str, *quotes: str) -> tuple:
    """The same where the passages do not state the answer."""
    return "perhaps", {"search": search, "words": list(quotes)}


class SearchTool(Tool):
    """A tool with one input."""

    name = "search"
    description = "Searches."
    inputs = {"question": {"type": "string", "description": "what to look for"}}  # noqa: RUF012
    output_type = "string"

    def forward(self, question: str) -> str:
        return question
