"""The endpoints, over assistants with hand-written models, as a client sees them."""

import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest
import uvicorn
from conftest import FakeEmbedder
from fakes import FakeChat, FakeRetriever, Typing, call, hit
from fastapi import testclient

from kit import service
from kit.agent import Assistant
from kit.client import Client
from kit.config import PROFILES, KitError
from kit.index import Index
from kit.llm import ContextOverflow, OllamaModel
from kit.retriever import Retriever
from kit.threads import NoSuchThread, Threads

PASSAGE = "The rent is 48,000 euros."
NO_THREAD = "0" * 32


class Slow(FakeChat):
    """Reads its prompt for a long time; `left` tells when the connection was closed."""

    def __init__(self):
        super().__init__()
        self.left = threading.Event()

    async def _send(self, *request):
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            self.left.set()
            raise


class Desk:
    """Makes assistants that answer 48,000, and keeps them."""

    def __init__(self, reasoner=None):
        self.made, self.reasoner = [], reasoner

    def __call__(self) -> Assistant:
        primary = FakeChat(call("rent"))
        reasoner = self.reasoner or Typing("The passage states it.", "48,000")
        self.made.append(Assistant(PROFILES["ci"], primary, reasoner, FakeRetriever([hit("a", PASSAGE)])))
        return self.made[-1]


def index_of(folder: Path, texts: dict[str, str]) -> Retriever:
    """Retrieval over files of these texts, embedded by a fake."""
    for name, text in texts.items():
        (folder / "docs").mkdir(parents=True, exist_ok=True)
        (folder / "docs" / name).write_text(text, encoding="utf-8")
    with Index.create(folder / "index", FakeEmbedder(), 300, 20) as index:
        index.ingest([folder / "docs"])
    return Retriever(Index.open(folder / "index", FakeEmbedder()))


def apps(retriever: Retriever, threads: Threads, tokens=()) -> dict:
    """Each service by its name in `kit serve`."""
    return {
        "vector-store": service.vector_store(retriever, tokens),
        "retriever": service.retrieval(retriever, tokens),
        "rag": service.rag(Desk(), threads, tokens),
    }


def TestClient(app, **more) -> testclient.TestClient:
    """A client that asks by an address of this machine."""
    return testclient.TestClient(app, base_url="http://127.0.0.1", **more)


@pytest.fixture
def threads(tmp_path) -> Threads:
    return Threads(tmp_path / "threads.sqlite")


@contextmanager
def served(app):
    """A real server, for what happens when a client leaves."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    worker = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    worker.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        worker.join()


def events(response) -> list[tuple[str, dict]]:
    return [
        (kind, json.loads(data))
        for kind, data in re.findall(r"event: (\w+)\r?\ndata: (.*)", response.text.replace("\r", ""))
    ]


def test_a_question_is_answered_with_its_sources(threads):
    client = TestClient(service.rag(Desk(), threads))
    answer = client.post("/ask", json={"question": "What is the rent?"}).json()
    assert answer["answer"] == "48,000" and answer["answered"] and answer["usage"]["calls"] == 7
    assert answer["sources"] == [{"source": "lease.pdf", "page": 1, "quote": "The rent is 48,000 euros."}]
    assert client.get("/threads").json() == []


def test_the_answer_streams_steps_tokens_and_comes_last(threads):
    response = TestClient(service.rag(Desk(), threads)).post("/ask/stream", json={"question": "What is the rent?"})
    assert response.headers["content-type"].startswith("text/event-stream")
    told = events(response)
    assert [data["kind"] for kind, data in told if kind == "step"] == ["search", "read"]
    assert "".join(data["text"] for kind, data in told if kind == "token").startswith("The passage states it.")
    assert told[-1][0] == "answer" and told[-1][1]["answer"] == "48,000"


def test_a_thread_is_remembered_by_the_next_assistant(threads):
    desk = Desk()
    client = TestClient(service.rag(desk, threads))
    thread = client.post("/threads").json()["id"]
    for question in ("What is the rent?", "And since when?"):
        assert client.post("/ask", json={"question": question, "thread": thread}).status_code == 200
    first, second = (assistant.primary.asked[0]["messages"] for assistant in desk.made)
    assert [m["content"] for m in first if m["role"] == "user"] == ["What is the rent?"]
    assert [m["content"].splitlines()[0] for m in second if m["role"] == "user"] == [
        "What is the rent?",
        "And since when?",
    ]
    assert [m["content"] for m in second if m["role"] == "tool"] == ["48,000"]
    (listed,) = client.get("/threads").json()
    assert listed["turns"] == 2 and listed["title"] == "What is the rent?"
    assert [turn["answer"]["answer"] for turn in client.get(f"/threads/{thread}").json()] == ["48,000"] * 2
    assert client.delete(f"/threads/{thread}").status_code == 204
    assert client.get(f"/threads/{thread}").status_code == 404


def test_what_is_remembered_is_what_the_agent_itself_would_remember():
    one, other = Desk()(), Desk()()
    one.primary.replies = [call("rent"), {"action": "final_answer", "input": {"answer": "Hello!"}}, call("rent")]
    one.reasoner.model.replies *= 2
    first, second = one.ask("What is the rent?"), one.ask("Hello", follow_up=True)
    one.ask("And now?", follow_up=True)
    for question, answer in (("What is the rent?", first), ("Hello", second)):
        other.remember(question, {"answer": answer.answer, "steps": answer.steps})
    other.ask("And now?", follow_up=True)
    assert other.primary.asked[0]["messages"] == one.primary.asked[2]["messages"]


def test_tokens_are_asked_for_and_threads_are_ones_own(threads):
    client = TestClient(service.rag(Desk(), threads, tokens=("ann's", "bob's")))
    ann, bob, eve = ({"Authorization": f"Bearer {name}'s"} for name in ("ann", "bob", "eve"))
    for headers in ({}, eve, {"Authorization": "Basic ann's"}):
        assert client.get("/threads", headers=headers).status_code == 401
        assert client.post("/ask", headers=headers, json={"question": "?"}).status_code == 401
    thread = client.post("/threads", headers=ann).json()["id"]
    assert client.get(f"/threads/{thread}", headers=bob).status_code == 404
    assert client.delete(f"/threads/{thread}", headers=bob).status_code == 404
    assert client.post("/ask", headers=bob, json={"question": "?", "thread": thread}).status_code == 404
    assert client.get("/threads", headers=bob).json() == [] and len(client.get("/threads", headers=ann).json()) == 1
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"question": "   "},
        {"question": "a" * 4001},
        {"question": "?", "mode": "unknown"},
        {"question": "?", "thread": "../../etc/passwd"},
        {"question": "?", "thread": "0" * 32, "mode": "rag"},
        {"question": ["?"]},
    ],
)
def test_a_malformed_question_is_refused(threads, asked):
    assert TestClient(service.rag(Desk(), threads)).post("/ask", json=asked).status_code == 422


def test_half_a_character_and_a_large_body_are_refused(threads):
    client = TestClient(service.rag(Desk(), threads), raise_server_exceptions=False)
    json_type = {"Content-Type": "application/json"}
    assert client.post("/ask", content=b'{"question": "\\ud800"}', headers=json_type).status_code == 422
    assert client.post("/ask", json={"question": "a" * 100_000}).status_code == 413
    in_pieces = (b"a" * 1000 for _ in range(100))  # that do not say how many they will be
    assert client.post("/ask", content=in_pieces, headers=json_type).status_code == 413
    assert client.get(f"/threads/{NO_THREAD}").status_code == 404
    assert client.get("/threads/..%2f..%2fetc%2fpasswd").status_code == 404


def test_another_name_of_this_machine_is_not_answered_to(threads):
    client = TestClient(service.rag(Desk(), threads))
    assert client.get("/health", headers={"Host": "evil.test"}).status_code == 400


def test_a_page_of_the_web_is_not_answered(threads):
    client = TestClient(service.rag(Desk(), threads))
    for origin, status in (
        ("https://evil.test", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://localhost:8888", 201),
    ):
        assert client.post("/threads", headers={"Origin": origin}).status_code == status
    assert len(client.get("/threads").json()) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(ContextOverflow(9000, 8192), 422), (KitError("Ollama does not answer."), 503)]
)
def test_faults_of_the_engine_are_told(threads, error, status):
    client = TestClient(service.rag(Desk(FakeChat(error, error)), threads))
    refused = client.post("/ask", json={"question": "What is the rent?"})
    assert refused.status_code == status and refused.json()["detail"] == str(error)
    (*_, last) = events(client.post("/ask/stream", json={"question": "What is the rent?"}))
    assert last == ("error", {"detail": str(error)})


def test_readiness_is_honest(threads):
    missing = ["Ollama does not answer.", ""]
    client = TestClient(service.rag(Desk(), threads, missing=lambda: missing.pop(0)))
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").json() == {"ready": True, "detail": ""}


@pytest.mark.parametrize("path", ["/ask", "/ask/stream"])
def test_whoever_leaves_stops_the_generation(threads, path):
    slow = Slow()
    with served(service.rag(Desk(slow), threads)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + path, json={"question": "What is the rent?"}, timeout=1.0, trust_env=False)
        left = time.monotonic()
        assert slow.left.wait(5)
        assert time.monotonic() - left < 1
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200


def test_whoever_leaves_while_tokens_are_written_stops_the_engine(threads, scripted):
    line = {"message": {"role": "assistant", "content": "word "}, "done": False}
    yes = {"message": {"content": "Yes"}, "done": True, "done_reason": "stop"}
    engine = scripted({"json": {"capabilities": []}}, {"lines": [yes]}, {"lines": [line] * 600, "pause": 0.05})
    reasoner = OllamaModel("m", engine.url, num_ctx=8192)
    with served(service.rag(Desk(reasoner), threads)) as url:
        asked = {"question": "What is the rent?"}
        with httpx.stream("POST", f"{url}/ask/stream", json=asked, timeout=20, trust_env=False) as response:
            assert any("event: token" in line for line in response.iter_lines())
            assert not engine.hung_up.is_set()
        left = time.monotonic()
        assert engine.hung_up.wait(5)
        assert time.monotonic() - left < 1


def test_an_answer_that_takes_too_long_is_given_up(threads, monkeypatch):
    monkeypatch.setattr(service, "SECONDS", 0.5)
    for path, status, said in (("/ask", 504, "no answer within"), ("/ask/stream", 200, "event: error")):
        slow = Slow()
        refused = TestClient(service.rag(Desk(slow), threads)).post(path, json={"question": "What is the rent?"})
        assert refused.status_code == status and said in refused.text
        assert slow.left.wait(5), "the generation is stopped"


def test_some_wait_and_the_rest_is_sent_away(threads):
    slow = Slow()
    with served(service.rag(Desk(slow), threads, waiting=1)) as url:
        refused = []

        def ask():
            with suppress(httpx.ReadTimeout):
                refused.append(httpx.post(f"{url}/ask", json={"question": "?"}, timeout=2, trust_env=False))

        askers = [threading.Thread(target=ask) for _ in range(5)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert [response.status_code for response in refused] == [429] * 3
        assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)


def test_answers_of_threads_are_not_mixed_up(threads):
    class Canary(FakeRetriever):
        def search(self, query, k):
            return [hit("a", f"The word is {query}.")]

    class Echo(FakeChat):
        writing, most = 0, 0  # generations at the same time

        async def _send(self, messages, schema, *rest):
            Echo.writing += 1
            Echo.most = max(Echo.most, Echo.writing)
            await anyio.sleep(0.01)
            Echo.writing -= 1
            word = re.findall(r"canary\d+", str(messages))[-1]
            self.replies = [call(word) if schema and "action" in str(schema) else {"words": [word]} if schema else word]
            return await super()._send(messages, schema, *rest)

    def desk():
        return Assistant(PROFILES["ci"], Echo(), Echo(), Canary([]))

    with served(service.rag(desk, threads, waiting=20)) as url:
        answers = {}

        def ask(number):
            client = Client(url)
            thread = client.new_thread()["id"]
            answers[number] = [client.ask(f"canary{number}{turn}?", thread)["answer"] for turn in range(3)]

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(10, 20)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert answers == {number: [f"canary{number}{turn}" for turn in range(3)] for number in range(10, 20)}
    assert Echo.most == 1, "one answer is made at a time"


@pytest.fixture
def retriever(tmp_path) -> Retriever:
    texts = {"tides.txt": "The harbour tide table gives high water at noon."}
    return index_of(tmp_path, texts | {"bread.md": "Rye bread is baked from flour, water and salt."})


def test_the_store_and_the_retriever_search(retriever, monkeypatch):
    def broken(*_):
        raise KitError("The index cannot be read.")

    store, search = TestClient(service.vector_store(retriever)), TestClient(service.retrieval(retriever))
    for client in (store, search):
        hits = client.post("/search", json={"query": "rye bread", "k": 1}).json()["hits"]
        assert [found["source"] for found in hits] == ["bread.md"]
        assert client.post("/search", json={"query": "bread", "k": 0}).status_code == 422
        assert client.get("/ready").json()["ready"]
    assert "noon" in store.get("/passages", params={"source": "tides.txt"}).json()["hits"][0]["text"]
    assert store.get("/passages", params={"source": "../../etc/passwd"}).status_code == 404
    (document,) = search.post("/documents?n=1", json={"query": "rye bread"}).json()["hits"]
    assert document["text"].startswith("Rye bread")
    monkeypatch.setattr(retriever.index, "passages", broken)
    assert store.get("/passages", params={"source": "tides.txt"}).status_code == 503


def test_the_client_says_what_a_service_said(threads, free_port):
    with served(service.rag(Desk(), threads, tokens=("secret",))) as url:
        with pytest.raises(KitError, match=r"401.*KIT_TOKEN"):
            Client(url).threads()
        client, heard = Client(url, "secret"), []
        thread = client.new_thread()["id"]
        assert client.ask("What is the rent?", thread, lambda *event: heard.append(event))["answer"] == "48,000"
        assert {kind for kind, _ in heard} == {"step", "token"}
        assert len(client.history(thread)) == 1
        client.clear(thread)
        with pytest.raises(KitError, match=r"404.*no thread"):
            client.ask("And now?", thread)
        with pytest.raises(KitError, match=r"422.*question"):
            client.ask(" ")
    with pytest.raises(KitError, match="kit serve"):
        Client(f"http://127.0.0.1:{free_port}").threads()


def test_a_port_that_is_taken_is_named(retriever):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(KitError, match="another --port"):
        service.run(service.retrieval(retriever), "127.0.0.1", other.getsockname()[1], print)
    with pytest.raises(KitError, match="another --port"):
        service.run(service.retrieval(retriever), "127.0.0.1", 70_000, print)
    with pytest.raises(KitError, match="another --host"):
        service.run(service.retrieval(retriever), "192.0.2.1", 0, print)


@pytest.mark.parametrize(
    ("fault", "says"), [(KitError("The disk is full."), "disk is full"), (NoSuchThread("x"), "no thread x")]
)
def test_an_answer_that_cannot_be_kept_is_told(threads, monkeypatch, fault, says):
    def add(*args):
        raise fault

    client = TestClient(service.rag(Desk(), threads))
    asked = {"question": "What is the rent?", "thread": client.post("/threads").json()["id"]}
    monkeypatch.setattr(threads, "add", add)
    kind, data = events(client.post("/ask/stream", json=asked))[-1]
    assert kind == "error" and says in data["detail"]
    assert says in client.post("/ask", json=asked).json()["detail"]
