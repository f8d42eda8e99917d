"""Budget forcing: hold a model to a number of tokens of thought, and make it go on where it would stop early.

After Muennighoff et al., s1: Simple test-time scaling (arXiv 2501.19393). Thoughts are written raw, as
the continuation of a text. Where the model wants to end them early, the end is thrown away and a word
that makes it go on stands in its place, a set number of times. When the budget is used up, the answer is
begun for it.

Not known here: what is thought about. A prompt comes in as text, for example from `chatml`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from kit.config import KitError

ENDS = ("</think>", "<|im_end|>")  # what ends thoughts, beside the opening of the answer
SECONDS = 600.0  # of one call

Write = Callable[[str, int, Sequence[str]], tuple[str, int]]  # (text, most tokens, stops) -> what follows, its tokens


@dataclass(frozen=True)
class Forced:
    """Thoughts of `tokens` tokens, `extended` times made to go on, and the answer."""

    thinking: str
    answer: str
    tokens: int
    extended: int


def force(
    write: Write,
    prompt: str,
    opening: str,
    budget: int,
    extensions: int = 0,
    word: str = "Wait,",
    answer_tokens: int = 60,
) -> Forced:
    """Let `write` think after `prompt` for at most `budget` tokens, then answer after `opening`.

    An early end of the thoughts is replaced by `word`, `extensions` times. With a budget of 0 nothing is
    thought. `opening` ends with an open quotation mark, which ends the answer. Raises what `write` raises.
    """
    thinking, used, extended = "", 0, 0
    stops = (*ENDS, opening.strip().rstrip(': "'))
    while used < budget:
        text, tokens = write(prompt + thinking, budget - used, stops)
        thinking, used = thinking + text, used + tokens
        if used >= budget or extended == extensions:
            break
        extended += 1
        thinking = f"{thinking.rstrip()} {word}"
        used += 1
    begun = f"{thinking.strip()}\n\n{opening}" if thinking.strip() else opening
    text, _ = write(prompt + begun, answer_tokens, ("\n", '"'))
    return Forced(thinking.strip(), text.strip(), used, extended)


def chatml(messages: Sequence[dict]) -> str:
    """`messages` as the text that Qwen2.5 was trained on, with the assistant's turn opened."""
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def ollama(url: str, model: str, num_ctx: int) -> Write:
    """Ollama's raw `/api/generate`, with a prompt that does not fit refused and not cut."""

    def write(text: str, most: int, stops: Sequence[str]) -> tuple[str, int]:
        options = {"num_predict": most, "stop": list(stops), "temperature": 0, "seed": 42, "num_ctx": num_ctx}
        request = {"model": model, "prompt": text, "raw": True, "stream": False, "truncate": False, "shift": False}
        reply = _post(f"{url}/api/generate", request | {"options": options}, "")
        return reply["response"], reply.get("eval_count", 0)

    return write


def completions(base_url: str, model: str, key: str = "") -> Write:
    """The `/completions` of an OpenAI-compatible server (vLLM, llama-server); `key` is sent as a bearer."""

    def write(text: str, most: int, stops: Sequence[str]) -> tuple[str, int]:
        request = {"model": model, "prompt": text, "max_tokens": most, "stop": list(stops), "temperature": 0}
        reply = _post(f"{base_url.rstrip('/')}/completions", request, key)
        return reply["choices"][0]["text"], reply["usage"]["completion_tokens"]

    return write


def _post(url: str, request: dict, key: str) -> dict:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.post(url, json=request, headers=headers, timeout=SECONDS, trust_env=False)
        reply.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise KitError(f"{url} refuses the request ({error.response.text.strip()[:300]}); run `kit doctor`.") from error
    except httpx.HTTPError as error:
        raise KitError(f"{url} does not answer ({error!r}); run `kit doctor`.") from error
    return reply.json()
