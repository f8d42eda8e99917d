"""Chat models with a budget, a wall-clock limit, and a guard on the context window.

`OllamaModel` speaks Ollama's native `/api/chat`, because the OpenAI-compatible `/v1` can set neither
the window nor what happens to a prompt that does not fit it. `OpenAIModel` speaks to every other
server (vLLM, llama-server, Hugging Face inference). Both are a `smolagents.Model`, so an agent takes
either, and both have `complete`, which the rest of the kit calls.

What this module does not know: prompts. Each stands beside its one user.
"""

import functools
import json
import math
import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import anyio
import httpx
import smolagents
from anyio.from_thread import start_blocking_portal
from smolagents.models import ChatMessageStreamDelta, ChatMessageToolCallStreamDelta

from kit.config import KitError, Profile
from kit.messages import (
    inert,
    native_message,
    object_schema,
    read_json,
    split_thoughts,
    text_message,
    tool_call,
    tool_call_schema,
    with_call_ids,
)

HUGGING_FACE = "https://router.huggingface.co/v1"
OnText = Callable[[str, str], None]  # called with ("thinking" or "text", the new piece)


class ContextOverflow(KitError):
    """The prompt does not fit the window; `prompt_tokens` and `window` are the two numbers."""

    def __init__(self, prompt_tokens: int, window: int):
        self.prompt_tokens, self.window = prompt_tokens, window
        super().__init__(
            f"The prompt has {prompt_tokens} tokens and the model's window is {window}; "
            "ask with a smaller --k or shorter text, begin a new conversation, or use a profile with a larger num_ctx."
        )


class Cancelled(KitError):
    """The call was cancelled from another thread."""

    def __init__(self):
        super().__init__("The answer was stopped; ask again when you like.")


@dataclass(frozen=True)
class Usage:
    """What calls of a model cost: counts in tokens, times in seconds as the server reports them."""

    calls: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    output_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Usage)))

    @property
    def engine_seconds(self) -> float:
        """Prompt reading plus generation, without loading."""
        return self.prompt_seconds + self.output_seconds


@dataclass(frozen=True)
class Reply:
    """One answer of a model. `finish` is `stop`, or `length` where the budget or the window ended it.

    `first` says how likely (0 to 1) each of the likeliest first tokens was, where that was asked for.
    """

    text: str
    thinking: str
    usage: Usage
    finish: str
    first: dict[str, float] = field(default_factory=dict)


class ChatModel(smolagents.Model):
    """What both kinds of server share: budgets, cancellation, usage, and tool calls held to a schema.

    `usage` adds up every call, and `max_tokens` and `seconds` are the limits of one call. A subclass
    says in `_send` how a request is made.
    """

    def __init__(self, model_id: str, max_tokens: int, seconds: float):
        super().__init__(model_id=model_id)
        self.max_tokens, self.seconds = max_tokens, seconds
        self.usage = Usage()
        self.on_text: OnText | None = None
        self.seed = 0  # another one draws the words by chance, at a temperature of 0.7
        self.cancelled = threading.Event()  # while it is set, calls end before they begin
        self._running: Future | None = None

    def complete(
        self,
        messages: list[dict],
        *,
        schema: dict | None = None,
        think: bool | None = None,
        max_tokens: int | None = None,
        stop: list[str] | None = None,
        likeliest: int = 0,
    ) -> Reply:
        """The model's reply to `messages` (dicts with `role` and `content`).

        `schema` holds the text to a JSON schema. The grammar made from it writes properties in the
        schema's order or, in some builds of Ollama, in alphabetical order; so give them names for
        which both are the order in which they should be thought of. `likeliest` asks for the
        probabilities of so many candidates for the first token. Pieces go to `on_text` as they
        arrive. Raises `ContextOverflow`, `Cancelled`, or a `KitError` when the server fails or the
        time is over; nothing is retried here.
        """
        with start_blocking_portal() as portal:
            self._running = portal.start_task_soon(
                self._limited, inert(messages), schema, think, max_tokens or self.max_tokens, stop, likeliest
            )
            if self.cancelled.is_set():
                self._running.cancel()
            try:
                reply = self._running.result()
            except CancelledError:
                raise Cancelled from None
            finally:  # an interrupt from the keyboard ends the generation too
                self._running.cancel()
                self._running = None
        self.usage += reply.usage
        return reply

    @contextmanager
    def heard_by(self, listener: OnText | None) -> Iterator[None]:
        """Let `listener` have the pieces for a while, or nobody: a reply may be nothing for a reader."""
        outer, self.on_text = self.on_text, listener
        try:
            yield
        finally:
            self.on_text = outer

    def cancel(self) -> None:
        """Stop the running call, from any thread: closing the connection ends the generation.

        Where several calls make an answer, set `cancelled` first, lest the next one begins.
        """
        if running := self._running:
            running.cancel()

    async def _limited(self, messages: list[dict], *request) -> Reply:
        try:
            with anyio.fail_after(self.seconds):
                return await self._send(messages, *request)
        except TimeoutError as error:
            raise KitError(
                f"{self.model_id} gave no full answer within {self.seconds:.0f} s; "
                "run `kit doctor`, or raise call_seconds in a profile file."
            ) from error

    async def _send(self, messages, schema, think, max_tokens, stop, likeliest) -> Reply:
        raise NotImplementedError

    def _chance(self) -> dict:
        return {"temperature": 0.7 if self.seed else 0, "seed": self.seed}

    def _emit(self, kind: str, piece: str) -> None:
        if piece and self.on_text:
            self.on_text(kind, piece)

    # What smolagents calls.

    def generate(self, messages, stop_sequences=None, response_format=None, tools_to_call_from=None, **kwargs):
        """One step of a `smolagents` agent: its messages in, a `ChatMessage` out.

        With tools on offer the reply is held to a schema made from them, so it always parses.
        """
        history = [native_message(m) if tools_to_call_from else text_message(m) for m in messages]
        if tools_to_call_from:
            reply = self.complete(history, schema=tool_call_schema(tools_to_call_from), **kwargs)
            content, calls = None, [tool_call(reply.text)]
        else:
            schema = (response_format or {}).get("json_schema", {}).get("schema")
            reply = self.complete(history, schema=schema, stop=None if schema else stop_sequences, **kwargs)
            content, calls = reply.text, None
        return smolagents.ChatMessage(
            role=smolagents.MessageRole.ASSISTANT,
            content=content,
            tool_calls=calls,
            raw=reply,
            token_usage=smolagents.TokenUsage(reply.usage.prompt_tokens, reply.usage.output_tokens),
        )

    def generate_stream(self, messages, **kwargs) -> Iterator[ChatMessageStreamDelta]:
        """As `generate`, in pieces: the text while it is written, then the tool call and the usage."""
        pieces: queue.SimpleQueue = queue.SimpleQueue()
        heard = self.heard_by(lambda kind, piece: pieces.put(piece if kind == "text" else ""))
        with heard, ThreadPoolExecutor(1) as worker:
            try:
                future = worker.submit(self.generate, messages, **kwargs)
                future.add_done_callback(lambda _: pieces.put(None))
                while (piece := pieces.get()) is not None:
                    if not kwargs.get("tools_to_call_from"):
                        yield ChatMessageStreamDelta(content=piece)
                message = future.result()
            finally:  # whoever stops listening stops the generation
                self.cancel()
        calls = [
            ChatMessageToolCallStreamDelta(
                index=i, id=c.id, type=c.type, function=replace(c.function, arguments=json.dumps(c.function.arguments))
            )
            for i, c in enumerate(message.tool_calls or [])
        ]
        yield ChatMessageStreamDelta(tool_calls=calls or None, token_usage=message.token_usage)


class OllamaModel(ChatModel):
    """A model in Ollama, over `/api/chat` (https://github.com/ollama/ollama/blob/main/docs/api.md).

    Its window is the `num_ctx` of its Modelfile. Every call sends `truncate: false`, so that a
    prompt which does not fit is refused and not cut in silence, and `shift: false`, so that writing
    ends at the window. Both are the same in every call: a change would reload the model.
    """

    def __init__(self, model_id: str, base_url: str, num_ctx: int, max_tokens: int = 256, seconds: float = 180.0):
        super().__init__(model_id, max_tokens, seconds)
        self.base_url, self.num_ctx = base_url.rstrip("/"), num_ctx

    @functools.cached_property
    def thinks(self) -> bool:
        """Whether Ollama keeps this model's thoughts apart from its answer (asked once)."""
        show, asked = f"{self.base_url}/api/show", {"model": self.model_id}
        try:
            response = httpx.post(show, json=asked, timeout=self.seconds, trust_env=False)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._check(response.status_code, response.text)
        return "thinking" in response.json().get("capabilities", [])

    async def _send(self, messages, schema, think, max_tokens, stop, likeliest) -> Reply:
        request = {
            "model": self.model_id,
            "messages": messages,
            "stream": True,
            "truncate": False,
            "shift": False,
            "options": {**self._chance(), "num_predict": max_tokens, **({"stop": stop} if stop else {})},
        }
        request |= {"format": schema} if schema else {}
        request |= {"think": think} if think is not None else {}
        request |= {"logprobs": True, "top_logprobs": likeliest} if likeliest else {}
        text, thinking, first = [], [], {}
        # No proxy between us and a local server; and no time limit here, because `_limited` has it.
        client = httpx.AsyncClient(trust_env=False, timeout=None, verify=self.base_url.startswith("https"))
        try:
            async with client, client.stream("POST", f"{self.base_url}/api/chat", json=request) as response:
                if response.status_code != 200:
                    self._check(response.status_code, (await response.aread()).decode(errors="replace"))
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    self._check(500 if "error" in event else 200, line)
                    message = event.get("message", {})
                    first = first or _probabilities(event.get("logprobs"))
                    for kind, pieces, key in (("thinking", thinking, "thinking"), ("text", text, "content")):
                        pieces.append(message.get(key) or "")
                        self._emit(kind, pieces[-1])
                    if event.get("done"):
                        usage = _ollama_usage(event)
                        return Reply("".join(text), "".join(thinking), usage, event["done_reason"], first)
            raise httpx.RemoteProtocolError("the connection ended before the answer did")
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._unreachable(error) from error

    def _check(self, status: int, body: str) -> None:
        """Turn a refusal of Ollama into the sentence that helps."""
        if status == 200:
            return
        numbers = re.findall(r"\d+", body)
        if status in (400, 500) and re.search(r"context|too long|exceed", body) and re.search(r"token|prompt", body):
            counts = [int(n) for n in numbers if int(n) > 400] or [self.num_ctx]
            raise ContextOverflow(max(counts), min([*counts, self.num_ctx]))
        if status == 404:
            raise KitError(f"Ollama at {self.base_url} has no model {self.model_id}; run `kit setup`.")
        raise KitError(
            f"Ollama at {self.base_url} answered {status} for {self.model_id} ({_error_text(body)}); run `kit doctor`."
        )

    def _unreachable(self, error: Exception) -> KitError:
        return KitError(f"Ollama at {self.base_url} does not answer ({error!r}); run `kit doctor`.")


class OpenAIModel(ChatModel):
    """A model behind any OpenAI-compatible server; Hugging Face inference is one.

    Such a server sets its own window, which this client can neither read nor change. With an
    `api_version` it is Azure OpenAI: `base_url` is the endpoint, `model_id` the name of the deployment
    (https://learn.microsoft.com/azure/ai-services/openai/reference).
    """

    thinks = False  # thoughts come as text or as `reasoning_content`, without being asked for

    def __init__(
        self,
        model_id: str,
        base_url: str,
        api_key: str,
        max_tokens: int = 256,
        seconds: float = 180.0,
        api_version: str = "",
    ):
        super().__init__(model_id, max_tokens, seconds)
        self.base_url, self.api_key, self.api_version = base_url, api_key or "none", api_version

    def _client(self):
        import openai

        account = {"api_key": self.api_key, "max_retries": 0}
        if self.api_version:
            return openai.AsyncAzureOpenAI(azure_endpoint=self.base_url, api_version=self.api_version, **account)
        return openai.AsyncOpenAI(base_url=self.base_url, **account)

    async def _send(self, messages, schema, think, max_tokens, stop, likeliest) -> Reply:
        import openai

        history = [with_call_ids(m, n) for n, m in enumerate(messages)]
        request = {"model": self.model_id, "messages": history, "max_tokens": max_tokens, "stream": True}
        request |= {**self._chance(), "stream_options": {"include_usage": True}}
        request |= {"stop": stop} if stop else {}
        request |= {"logprobs": True, "top_logprobs": likeliest} if likeliest else {}
        choice_of_forms = bool(schema) and "anyOf" in schema  # which OpenAI and Azure refuse at the root of a schema
        if choice_of_forms:
            schema = object_schema(reply=schema)
        if schema:
            held = {"name": "reply", "schema": schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": held}
        text, thinking, usage, finish, first = [], [], Usage(calls=1), "", {}
        started = anyio.current_time()
        try:
            async with self._client() as client:
                async for event in await client.chat.completions.create(**request):
                    if event.usage:
                        usage = replace(
                            usage,
                            prompt_tokens=event.usage.prompt_tokens,
                            output_tokens=event.usage.completion_tokens,
                        )
                    for choice in event.choices:
                        thoughts = (getattr(choice.delta, name, None) for name in ("reasoning_content", "reasoning"))
                        thinking.append(next(filter(None, thoughts), ""))  # vLLM has renamed it
                        text.append(choice.delta.content or "")
                        self._emit("thinking", thinking[-1])
                        self._emit("text", text[-1])
                        finish = choice.finish_reason or finish
                        tokens = choice.logprobs and choice.logprobs.content
                        first = first or _probabilities([token.model_dump() for token in tokens or []])
        except openai.OpenAIError as error:
            raise self._refusal(error) from error
        if not finish:
            raise KitError(f"{self.base_url} ended before the answer of {self.model_id} did; ask again.")
        # The protocol reports no times, so all of it counts as generation.
        usage = replace(usage, output_seconds=anyio.current_time() - started)
        thoughts, answer = split_thoughts("".join(text))
        if choice_of_forms:
            answer = json.dumps(read_json(answer).get("reply") or {}, ensure_ascii=False)
        return Reply(answer, "".join(thinking) or thoughts, usage, finish, first)

    def _refusal(self, error) -> KitError:
        window = re.search(r"context (?:length|size|window)\D*(\d+)", str(error))
        if window and getattr(error, "status_code", 0) == 400:
            return ContextOverflow(max(int(n) for n in re.findall(r"\d+", str(error))), int(window[1]))
        reason = " ".join(str(error).split())[:300]
        return KitError(f"{self.base_url} did not answer for {self.model_id} ({reason}); check base_url and the key.")


def chat_model(profile: Profile, role: str, url: str = "") -> ChatModel:
    """The client of `role` (`primary` or `reasoner`); `url` is where Ollama answers."""
    name = profile.model_name(role)
    if profile.provider == "ollama":
        return OllamaModel(name, url, profile.num_ctx, profile.primary_tokens, profile.call_seconds)
    base_url = profile.base_url or (HUGGING_FACE if profile.provider == "huggingface" else "")
    if not base_url:
        raise KitError(
            f"Profile {profile.name} has provider {profile.provider} and no base_url; add one to the profile file."
        )
    if profile.provider == "azure" and not profile.api_version:
        raise KitError(f"Profile {profile.name} has provider azure and no api_version; add one to the profile file.")
    budget = (profile.primary_tokens, profile.call_seconds)
    return OpenAIModel(name, base_url, profile.api_key, *budget, api_version=profile.api_version)


def _probabilities(tokens: list[dict] | None) -> dict[str, float]:
    """How likely each candidate for the first of `tokens` was, as both protocols tell it."""
    return {c["token"]: math.exp(c["logprob"]) for c in tokens[0]["top_logprobs"]} if tokens else {}


def _ollama_usage(event: dict) -> Usage:
    def seconds(key: str) -> float:
        return event.get(key, 0) / 1e9

    return Usage(
        calls=1,
        prompt_tokens=event.get("prompt_eval_count", 0),
        output_tokens=event.get("eval_count", 0),
        load_seconds=seconds("load_duration"),
        prompt_seconds=seconds("prompt_eval_duration"),
        output_seconds=seconds("eval_duration"),
    )


def _error_text(body: str) -> str:
    try:
        return str(json.loads(body).get("error", body))[:300]
    except (json.JSONDecodeError, AttributeError):
        return " ".join(body.split())[:300] or "an empty reply"
