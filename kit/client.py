"""Ask the services of `kit serve` over HTTP, as `kit query` does.

Every function raises `KitError` with what the service said where it refuses, and where none answers.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import httpx_sse

from kit.config import KitError

PORTS = {"vector-store": 8001, "retriever": 8002, "rag": 8003}
SECONDS = 900.0  # the longest silence; an answer may have to wait for its turn


class Client:
    """A service at `url`; `token` is sent as a bearer where it is not empty."""

    def __init__(self, url: str, token: str = ""):
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self._told():
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False)

    def search(self, query: str, k: int) -> dict:
        """`{hits}` of a vector store or a retriever."""
        return self._call("POST", "/search", json={"query": query, "k": k})

    def passages(self, source: str, page: int | None = None) -> dict:
        """`{hits}`: every passage that a vector store holds of a source, or of one page of it."""
        asked = {"source": source} | ({"page": page} if page else {})
        return self._call("GET", "/passages", params=asked)

    def documents(self, query: str, k: int, n: int) -> dict:
        """`{hits}` of a retriever: the first `n` documents that have a passage among the `k` best, whole."""
        return self._call("POST", "/documents", params={"n": n}, json={"query": query, "k": k})

    def ask(self, question: str, thread: str = "", on_event: Callable[[str, dict], None] | None = None) -> dict:
        """What `kit ask --json` prints; `on_event` gets every `step` and `token` as it comes."""
        asked = {"question": question} | ({"thread": thread} if thread else {})
        with self._told(), httpx_sse.connect_sse(self._http, "POST", "/ask/stream", json=asked) as source:
            _check(source.response)
            for event in source.iter_sse():
                data = json.loads(event.data)
                if event.event == "answer":
                    return data
                if event.event == "error":
                    raise KitError(data["detail"])
                if on_event:
                    on_event(event.event, data)
        raise KitError(f"The service at {self.url} ended its answer too early; see its log, and ask again.")

    def new_thread(self) -> dict:
        """`{id, created, turns, title}` of a conversation that begins."""
        return self._call("POST", "/threads")

    def threads(self) -> list[dict]:
        """One's own conversations, the latest first."""
        return self._call("GET", "/threads")

    def history(self, thread: str) -> list[dict]:
        """`{question, answer, created}` for each turn of a conversation."""
        return self._call("GET", f"/threads/{thread}")

    def clear(self, thread: str) -> None:
        """Forget a conversation."""
        self._call("DELETE", f"/threads/{thread}")

    def _call(self, method: str, path: str, **request):
        with self._told():
            response = self._http.request(method, path, **request)
            _check(response)
            return response.json() if response.content else None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as error:
            raise KitError(
                f"No service answers at {self.url} ({error}); start one with `kit serve`, or give its --url."
            ) from error


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        detail = json.loads(response.read())["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:300]
    if isinstance(detail, list):  # of FastAPI, about a malformed request
        detail = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in detail)
    raise KitError(f"The service refused with {response.status_code}: {detail}")
