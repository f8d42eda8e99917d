"""HTTP endpoints for the vector store, the retriever and the whole assistant (FastAPI, https://fastapi.tiangolo.com).

Each application is a function of the objects that it serves. The assistant's one keeps its threads in
SQLite and nothing in memory: every question gets an assistant of its own, told what the thread holds.
One answer is made at a time, some wait, more are refused with 429; a client that leaves stops its own.

Not known here: TLS, accounts, and more than one process; put a proxy in front for these.
"""

import asyncio
import errno
import hashlib
import math
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Literal
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field, StringConstraints, model_validator
from starlette.middleware.trustedhost import TrustedHostMiddleware

from kit import __version__
from kit.agent import LONGEST_QUESTION, MODES, Answer, Assistant
from kit.config import KitError
from kit.llm import ContextOverflow
from kit.retriever import Hit, NotIndexed, Retriever
from kit.threads import NoSuchThread, Threads

LOOPBACK = ("127.0.0.1", "localhost")
MAX_BODY = 64 * 1024  # bytes
MAX_K = 100
WAITING = 8  # questions that wait for their turn; more are refused
KEPT_TURNS = 20  # of a thread that an answer is told of
SECONDS = 900.0  # for one answer, waiting included
TOO_LATE = f"There was no answer within {SECONDS:.0f} s."
NO_THREAD = {404: {"description": "There is no such thread."}}
Tell = Callable[[str, dict], None]  # called with the kind of event and its data

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_QUESTION)]
THREAD = "^[0-9a-f]{32}$"
ThreadId = Annotated[str, Path(pattern=THREAD, examples=["5f0c2c1f0ad94f62a4f3d0a1c2b3d4e5"])]


class Searching(BaseModel):
    """What to search for."""

    query: Text = Field(examples=["late payment"])
    k: int = Field(10, ge=1, le=MAX_K)


class Found(BaseModel):
    """Passages, the best first."""

    hits: list[Hit]


class Asking(BaseModel):
    """A question; with a `thread`, which only mode agentic follows, it is a turn of that conversation, and kept."""

    question: Text = Field(examples=["Who freed Solveig from the net?"])
    thread: str | None = Field(None, pattern=THREAD)
    mode: Literal[MODES] = "agentic"

    @model_validator(mode="after")
    def _followed(self):
        if self.thread and self.mode != "agentic":
            raise ValueError("only mode agentic follows a thread; leave out one of the two")
        return self


class Thread(BaseModel):
    """A conversation; `created` is in seconds since 1970, `title` its first question."""

    id: str
    created: float
    turns: int
    title: str | None


class Turn(BaseModel):
    """A question of a thread and its answer."""

    question: str
    answer: Answer
    created: float


class State(BaseModel):
    """`ready` says whether questions can be answered now, `detail` what is missing."""

    ready: bool
    detail: str = ""


def vector_store(retriever: Retriever, tokens: Sequence[str] = ()) -> FastAPI:
    """Search by meaning alone, and what the index holds of a source."""
    app, owner = _app("vector store", tokens)

    @app.post("/search", dependencies=[owner])
    def search(asked: Searching) -> Found:
        """The nearest passages by meaning; the score is the cosine similarity."""
        return Found(hits=Retriever(retriever.index, hybrid=False).search(asked.query, asked.k))

    @app.get("/passages", dependencies=[owner], responses={404: {"description": "The source is not in the index."}})
    def passages(
        source: Annotated[str, Query(max_length=1000, examples=["annual-report-2023.pdf"])],
        page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    ) -> Found:
        """Every passage of a source, or of one page of it; a source is a name in the index, never a path."""
        try:
            return Found(hits=retriever.passages([{"source": source, "page": page}]))
        except NotIndexed as error:
            raise HTTPException(404, str(error)) from None

    return app


def retrieval(retriever: Retriever, tokens: Sequence[str] = ()) -> FastAPI:
    """Search as the assistant does, by meaning and by words, and whole documents by their passages."""
    app, owner = _app("retriever", tokens)

    @app.post("/search", dependencies=[owner])
    def search(asked: Searching) -> Found:
        """The best passages by meaning and by words."""
        return Found(hits=retriever.search(asked.query, asked.k))

    @app.post("/documents", dependencies=[owner])
    def documents(asked: Searching, n: Annotated[int, Query(ge=1, le=20)] = 3) -> Found:
        """The first `n` documents that have a passage among the `k` best, whole."""
        return Found(hits=retriever.documents(asked.query, asked.k, n))

    return app


def rag(
    new_assistant: Callable[[], Assistant],
    threads: Threads,
    tokens: Sequence[str] = (),
    missing: Callable[[], str] = lambda: "",
    waiting: int = WAITING,
) -> FastAPI:
    """Ask, with the answer whole or streamed, and keep conversations.

    `new_assistant` makes an assistant with models of its own. `missing` says what keeps it from
    answering, "" where nothing does. One of `tokens` is asked for where there are any; the threads
    of one token are not seen by another.
    """
    app, owner = _app("assistant", tokens, missing)
    line = Line(waiting)
    refused = {
        **NO_THREAD,
        422: {"description": "The question is malformed, or does not fit the model's window."},
        429: {"description": "Too many questions wait; `Retry-After` says in how many seconds to come back."},
        503: {"description": "The engine does not answer."},
        504: {"description": "No answer within the time limit."},
    }

    def known(asked: Asking, who: str = owner) -> Asking:
        """The question, where its thread is there."""
        if asked.thread:
            threads.check(who, asked.thread)
        return asked

    def told(asked: Asking, who: str) -> Assistant:
        assistant = new_assistant()
        for turn in threads.turns(who, asked.thread, KEPT_TURNS) if asked.thread else ():
            assistant.remember(turn["question"], turn["answer"])
        return assistant

    async def answered(asked: Asking, who: str, tell: Tell = lambda event, data: None) -> Answer:
        """The answer, in its turn; it is kept in its thread before anybody hears of it."""
        async with line.turn():
            answer = await _ask(await asyncio.to_thread(told, asked, who), asked, tell)
            if asked.thread:
                await asyncio.to_thread(threads.add, who, asked.thread, asked.question, asdict(answer))
            return answer

    @app.post("/ask", responses=refused, dependencies=[owner, Depends(line.place)])
    async def ask(request: Request, asked: Annotated[Asking, Depends(known)], who: str = owner) -> Answer:
        """The whole answer, with its sources, steps, tokens and seconds."""
        work, leaving = asyncio.create_task(answered(asked, who)), asyncio.create_task(_left(request))
        try:
            await asyncio.wait([work, leaving], timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise HTTPException(499 if leaving.done() else 504, TOO_LATE)
            return work.result()
        finally:
            work.cancel()
            leaving.cancel()

    @app.post(
        "/ask/stream",
        response_class=EventSourceResponse,
        responses=refused,
        dependencies=[owner, Depends(line.place)],
    )
    async def stream(asked: Annotated[Asking, Depends(known)], who: str = owner) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: `step` for what is done, `token` for what is written, then `answer`, or `error`."""
        said: asyncio.Queue = asyncio.Queue()
        work = asyncio.create_task(answered(asked, who, lambda *event: said.put_nowait(event)))
        work.add_done_callback(lambda _: said.put_nowait(("end", None)))
        try:
            async with asyncio.timeout(SECONDS):
                while (event := await said.get())[0] != "end":
                    yield ServerSentEvent(event=event[0], data=event[1])
            yield ServerSentEvent(event="answer", data=asdict(work.result()))
        except (KitError, NoSuchThread, TimeoutError) as error:
            yield ServerSentEvent(event="error", data={"detail": str(error) or TOO_LATE})
        finally:
            work.cancel()

    _add_threads(app, owner, threads)
    return app


def _add_threads(app: FastAPI, owner, threads: Threads) -> None:
    """The conversations of an owner: begin one, list them, read one, forget one."""

    @app.post("/threads", status_code=201)
    def new_thread(who: str = owner) -> Thread:
        """Begin a conversation."""
        return Thread(**threads.new(who))

    @app.get("/threads")
    def list_threads(who: str = owner) -> list[Thread]:
        """One's own conversations, the latest first."""
        return [Thread(**thread) for thread in threads.of(who)]

    @app.get("/threads/{id}", responses=NO_THREAD)
    def history(id: ThreadId, who: str = owner) -> list[Turn]:
        """The turns of a conversation, the oldest first."""
        return [Turn(**turn) for turn in threads.turns(who, id)]

    @app.delete("/threads/{id}", status_code=204, responses=NO_THREAD)
    def clear(id: ThreadId, who: str = owner) -> None:
        """Forget a conversation."""
        threads.delete(who, id)


class Line:
    """One answer at a time; `waiting` more stand in line, and who comes later is sent away with 429."""

    def __init__(self, waiting: int):
        self.waiting, self._turn = waiting, asyncio.Semaphore(1)
        self._inside, self._seconds = 0, 30.0  # requests, and how long the last answer took

    async def place(self) -> AsyncIterator[None]:
        """A place in line for the length of a request."""
        if self._inside > self.waiting:
            wait = math.ceil(self._seconds * self._inside / 2)
            detail = f"{self._inside} questions are being answered or wait; come back in {wait} s."
            raise HTTPException(429, detail, headers={"Retry-After": str(wait)})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One's own turn, waited for."""
        async with self._turn:
            started = time.monotonic()
            yield
            self._seconds = time.monotonic() - started


async def _ask(assistant: Assistant, asked: Asking, tell: Tell) -> Answer:
    """The answer, made in a thread, which tells what it does and writes. Cancelled, it stops the engine first."""
    loop = asyncio.get_running_loop()

    def happened(kind: str, details: dict) -> None:
        told = {"search": lambda: {"query": details["query"]}, "read": lambda: {"passages": len(details["hits"])}}
        if kind in told:
            loop.call_soon_threadsafe(tell, "step", {"kind": kind, **told[kind]()})

    def written(kind: str, piece: str) -> None:
        loop.call_soon_threadsafe(tell, "token", {"kind": kind, "text": piece})

    assistant.tool.on_event = happened
    writer = assistant.primary if asked.mode in ("closed", "rag") else assistant.reasoner.model
    writer.on_text = written
    work = asyncio.create_task(asyncio.to_thread(assistant.ask, asked.question, asked.mode, follow_up=True))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            assistant.cancel()
            await asyncio.wait([work], timeout=0.1)
        work.exception()  # that it was cancelled is no news
        raise


def run(app: FastAPI, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve `app` until Ctrl-C; port 0 takes a free one. `say` is told the address.

    Raises `KitError` where the port is not free, or the address not this machine's.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OverflowError) or error.errno in (errno.EADDRINUSE, errno.EACCES)
        other = "--port" if taken else "--host"
        raise KitError(f"{host}:{port} cannot be served on ({error}); give another {other}.") from error
    with listener:
        name = f"[{host}]" if ":" in host else host
        say(f"{app.title} at http://{name}:{listener.getsockname()[1]}, described in /openapi.json; Ctrl-C ends it.")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])


async def _left(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _app(name: str, tokens: Sequence[str], missing: Callable[[], str] = lambda: "") -> tuple[FastAPI, object]:
    """An application with health and readiness, and the dependency that names the owner of a request."""
    app = FastAPI(
        title=f"Agentic RAG kit: {name}",
        version=__version__,
        max_body_size=MAX_BODY,
        docs_url=None,  # these pages fetch scripts from elsewhere
        redoc_url=None,
        telemetry={"auto_configure": False},
    )
    if not tokens:  # then it is this machine's alone, and no page of the web may reach it by another name
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)

    @app.get("/health")
    def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok", "version": __version__}

    @app.get("/ready", responses={503: {"model": State, "description": "Something is missing; `detail` says what."}})
    def ready(response: Response) -> State:
        """Whether questions can be answered."""
        detail = missing()
        response.status_code = 503 if detail else 200
        return State(ready=not detail, detail=detail)

    @app.exception_handler(RequestValidationError)
    async def malformed(_, error: RequestValidationError):
        # Without the input: half a character in it could not be written back.
        return JSONResponse(
            {"detail": [{key: part[key] for key in ("type", "loc", "msg")} for part in error.errors()]}, 422
        )

    @app.exception_handler(NoSuchThread)
    async def no_thread(_, error: NoSuchThread):
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(KitError)
    async def failed(_, error: KitError):
        return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ContextOverflow) else 503)

    return app, Depends(_owner(tokens))


def _of_this_machine(origin: Annotated[str | None, Header(include_in_schema=False)] = None) -> str:
    """Nobody in particular, and no page of the web: a browser tells where a page comes from that asks elsewhere."""
    if origin and _host(origin) not in LOOPBACK:
        raise HTTPException(403, f"A page of {origin} may not ask this service; set KIT_TOKEN, and give it a token.")
    return ""


def _host(origin: str) -> str | None:
    with suppress(ValueError):
        return urlsplit(origin).hostname
    return None


def _owner(tokens: Sequence[str]) -> Callable:
    """A dependency that checks the bearer token; its sum names the owner of threads, "" where none is asked for."""
    if not tokens:
        return _of_this_machine

    def owner(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> str:
        token = given.credentials.encode() if given else b""
        fitting = [secrets.compare_digest(token, known.encode()) for known in tokens]  # all, whichever fits
        if not any(fitting):
            raise HTTPException(401, "Give a token of KIT_TOKEN as a bearer.", headers={"WWW-Authenticate": "Bearer"})
        return hashlib.sha256(token).hexdigest()

    return owner
