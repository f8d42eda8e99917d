"""What each command of `kit` does: it wires the modules together, prints the result, and holds no logic of its own.

Every function here takes the arguments that `kit.cli` has read, and the profile, and returns the exit
status. What is heavy is imported where it is used, so that `kit --help` is quick.
"""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from kit.client import PORTS
from kit.config import KitError, expanded, remember_profile, service_tokens

# Questions to click on the web page, each shown where its source is in the index.
DEMO = {
    "Who freed Solveig from the net?": "incident-report-tarrin-maid.pdf",
    "What is the daily meal allowance under version 3 of the travel expense policy?": "travel-expense-policy-v3.pdf",
    "Who chairs the board?": "board-minutes-2024-03-21.pdf",
}


def setup(args, profile) -> int:
    from kit import models

    _say(f"Profile {profile.name}: {profile.why}.")
    result = models.setup(profile)
    remember_profile(profile, args.profile)
    _print(args, result, _setup_text)
    return 0


def doctor(args, profile) -> int:
    from kit import doctor

    checks = doctor.check(profile)
    ok = all(check["ok"] for check in checks)
    _print(args, {"ok": ok, "checks": checks}, _doctor_text)
    return 0 if ok else 1


def ingest(args, profile) -> int:
    from kit.index import Embedder, Index

    size = args.chunk_size if args.chunk_size is not None else profile.chunk_size
    overlap = args.chunk_overlap if args.chunk_overlap is not None else profile.chunk_overlap
    with Index.create(_folder(args, profile), Embedder(profile.embedding_path), size, overlap) as index:
        result = index.ingest(args.paths)
    _print(args, result, _ingest_text)
    return 0


def search(args, profile) -> int:
    hits = _retriever(args, profile).search(args.query, args.k or profile.k)
    _print(args, {"hits": [asdict(hit) for hit in hits]}, _search_text)
    return 0


def ask(args, profile) -> int:
    from kit import chat

    with _assistants(args, profile) as (new_assistant, _):
        answer = new_assistant().ask(args.question, args.mode, args.k or 0, args.max_steps or 0)
    _print(args, asdict(answer), lambda _: chat.format_answer(answer))
    return 0


def chat(args, profile) -> int:
    from kit import chat

    with _assistants(args, profile) as (new_assistant, _):
        if args.web:
            _page(args, profile, new_assistant)
        else:
            chat.terminal(new_assistant())
    return 0


def _page(args, profile, new_assistant) -> None:
    from kit import web

    index = new_assistant().retriever.index
    examples = [question for question, source in DEMO.items() if index.passages(source)]
    stand_in = "A small general model stands in for the reasoning model." if profile.stand_in else ""
    blocks = web.page(new_assistant, examples, f"Profile {profile.name}. {stand_in}")
    url = web.serve(blocks, args.port)
    _say(f"The page is at {url} and on this machine only; Ctrl-C ends it.")
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def serve(args, profile) -> int:
    from kit import engine, service
    from kit.threads import Threads

    port = PORTS[args.what] if args.port is None else args.port
    tokens = service_tokens()
    if args.host not in service.LOOPBACK and not tokens:
        raise KitError(f"{args.host} lets other machines in; set KIT_TOKEN to a secret first, or serve on 127.0.0.1.")
    if args.what != "rag":
        make = service.vector_store if args.what == "vector-store" else service.retrieval
        retriever = _retriever(args, profile)
        retriever.index.embedder.load()
        service.run(make(retriever, tokens), args.host, port, _say)
        return 0
    with _assistants(args, profile) as (new_assistant, server):

        def missing() -> str:
            ok = server is None or engine.answering_version(server.url)
            return "" if ok else f"Ollama at {server.url} does not answer; start `kit serve rag` again."

        # Each index has conversations of its own: an answer from one collection is not told over another.
        kept = hashlib.sha256(str(_folder(args, profile).resolve()).encode()).hexdigest()[:16]
        threads = Threads(profile.home / "threads" / f"{kept}.sqlite")
        app = service.rag(new_assistant, threads, tokens, missing)
        service.run(app, args.host, port, _say)
    return 0


def query(args, profile) -> int:
    from kit.client import Client

    asked = QUERIES[args.what]
    client = Client(args.url or f"http://127.0.0.1:{PORTS[asked.service]}", next(iter(service_tokens()), ""))
    _print(args, asked.ask(client, args, profile), asked.show)
    return 0


def _forget(client, thread: str) -> dict:
    client.clear(thread)
    return {"cleared": thread}


def distill_questions(args, profile) -> int:
    from kit import distill
    from kit.corpus import whole_documents
    from kit.index import Embedder
    from kit.llm import chat_model

    failed: list[dict] = []
    documents = whole_documents(args.paths, failed)
    for file in failed:
        _say(f"left out: {file['file']}: {file['error']}")
    known = _known(args.known)
    templates = Path(args.templates) if args.templates else distill.TEMPLATES
    embed = Embedder(profile.embedding_path).encode
    with _engine(profile) as (_, url):
        model = chat_model(profile, "primary", url)
        result = distill.questions(documents, model, embed, args.out, args.count, known, args.kinds, templates)
    _print(args, result | {"stand_in_teacher": profile.stand_in}, _distill_text)
    return 0


def distill_traces(args, profile) -> int:
    from kit import distill
    from kit.llm import chat_model
    from kit.reasoner import Reasoner

    rows, _ = _questions(args.questions)
    asked = [row for row in rows if not row.get("rejected") and args.split in (None, row.get("split"))]
    retriever = _retriever(args, profile)
    with _engine(profile) as (_, url):
        model = chat_model(profile, "reasoner", url)
        teacher = Reasoner(model, profile.thinking_tokens, profile.answer_tokens, profile.stand_in)
        result = distill.traces(asked, retriever, teacher, args.k or profile.k, args.out, args.tries)
    _print(args, result | {"stand_in_teacher": profile.stand_in}, _distill_text)
    return 0


def finetune(args, profile) -> int:
    from kit import distill, engine, evaluation, finetune
    from kit.index import Embedder

    recipe = finetune.STUDY if args.full else finetune.Recipe()
    changed = {f.name: value for f in fields(recipe) if (value := getattr(args, f.name)) is not None}
    if not Path(args.traces).is_file():
        raise KitError(f"There is no file {args.traces}; make one with `kit distill traces`.")
    traced = evaluation.read_rows(args.traces)
    if not all({"rejected", "hits", "thinking"} <= row.keys() for row in traced):
        raise KitError(f"{args.traces} holds rows that are no traces; give what `kit distill traces` wrote.")
    accepted = [row for row in traced if not row["rejected"]]
    kept = distill.apart(accepted, _known(args.known), Embedder(profile.embedding_path).encode)
    if accepted and not kept:
        raise KitError(
            f"All {len(accepted)} accepted traces are much like a question of --known; trace other questions."
        )
    rows = [distill.training_row(row) for row in kept]
    result = finetune.train(rows, args.base or finetune.BASE, profile.home, args.out, replace(recipe, **changed))
    result |= {"leaked": len(accepted) - len(kept), "profile": None}
    if profile.provider == "ollama":
        with engine.running(profile) as server:
            result["profile"] = str(finetune.into_ollama(args.out, args.name, profile, server.url))
    _print(args, result, _finetune_text)
    return 0


def _known(paths: list[str]) -> list[str]:
    """The questions to keep away from: all of the files, but for those that are there for training."""
    return [row["question"] for path in paths for row in _questions(path)[0] if row.get("split") != "train"]


def _questions(path: str) -> tuple[list[dict], list[dict]]:
    """The rows of a question file, and the lines that are left out, which are said."""
    from kit import evaluation

    rows, left_out = evaluation.read_questions(path)
    for line in left_out:
        _say(line["error"])
    return rows, left_out


def _written(kind: str, data: dict) -> None:
    """What a service does and writes, for somebody who watches."""
    if sys.stderr.isatty():
        print(data["text"] if kind == "token" else f"\n… {data}\n", end="", file=sys.stderr, flush=True)


def evaluate(args, profile) -> int:
    from kit import engine, evaluation

    questions, left_out = _questions(args.questions)
    questions = questions[: args.limit]
    settings = {"profile": profile.name, "primary": profile.model_name("primary")}
    settings |= {"reasoner": profile.model_name("reasoner"), "index": str(_folder(args, profile)), "k": profile.k}
    with _assistants(args, profile) as (new_assistant, server):
        assistant = new_assistant()

        def recover(error: KitError) -> bool:
            return server is not None and engine.revive(server, profile)

        rows = evaluation.run(questions, args.modes, assistant.answer, args.out, settings, recover)
        result = evaluation.summarize(questions, rows)
        result["retrieval"] = evaluation.retrieval(questions, assistant.retriever.search, profile.k)
    plots = evaluation.plot(result, args.out)
    result |= {"stand_in_reasoner": profile.stand_in, "left_out": left_out, "plots": [str(path) for path in plots]}
    _print(args, result, _evaluate_text)
    return 0


@contextlib.contextmanager
def _assistants(args, profile):
    """What makes an assistant over the index, and the engine (None for another provider), running for the block."""
    from kit.agent import Assistant
    from kit.llm import chat_model

    retriever = _retriever(args, profile) if getattr(args, "mode", "") != "closed" else None
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        loaded = pool.submit(retriever.index.embedder.load) if retriever else None  # while the engine loads its own
        server, url = stack.enter_context(_engine(profile))
        if loaded:
            loaded.result()  # before the first answer: on few cores the two would slow each other down

        def new_assistant():
            primary, reasoner = (chat_model(profile, role, url) for role in ("primary", "reasoner"))
            return Assistant(profile, primary, reasoner, retriever, _event)

        yield new_assistant, server


@contextlib.contextmanager
def _engine(profile):
    """The engine (None for another provider) and its address, running for the block; what runs is said."""
    from kit import engine, models

    with engine.running(profile) if profile.provider == "ollama" else contextlib.nullcontext() as server:
        url = server.url if server else ""
        for line in models.describe(profile, url):
            _say(line)
        yield server, url


def _retriever(args, profile):
    from kit.index import Embedder, Index
    from kit.retriever import Retriever

    return Retriever(Index.open(_folder(args, profile), Embedder(profile.embedding_path)))


def _folder(args, profile) -> Path:
    return expanded(args.index) if args.index else profile.index


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _event(kind: str, details: dict) -> None:
    """Progress of an answer, for somebody who watches."""
    if not sys.stderr.isatty():
        return
    if kind == "search":
        _say(f"… searching: {details['query']}")
    elif kind == "read":
        places = ", ".join(dict.fromkeys(hit.source for hit in details["hits"]))
        _say(f"… reading {len(details['hits'])} passages of {places or 'nothing new'}")
    elif kind == "verdict":
        verdict = details["verdict"]
        better = f"; better query: {verdict['better_query']}" if verdict["better_query"] else ""
        _say("… found" if verdict["sufficient"] else f"… not found{better}")


def _print(args, result: dict, text) -> None:
    print(json.dumps(result, ensure_ascii=False) if args.json else text(result))


def _setup_text(result: dict) -> str:
    engine = result["engine"]
    lines = [f"profile  {result['profile']} ({result['why']})"]
    if engine:
        lines.append(f"engine   Ollama {engine['version']}, {engine['source']}: {engine['path']}")
    lines += [f"{m['role']:<8} {m['name']}, window {m['num_ctx']}, {m['source']}" for m in result["models"]]
    return "\n".join([*lines, f"Ready after {result['seconds']:.0f} s."])


def _doctor_text(result: dict) -> str:
    lines = []
    for check in result["checks"]:
        lines.append(f"{'OK  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
        if not check["ok"]:
            lines.append(f"     → {check['remedy']}")
    return "\n".join(lines)


def _ingest_text(result: dict) -> str:
    lines = [
        f"{result['files']} files, {result['pages']} pages, {result['chunks']} chunks in the index after "
        f"{result['seconds']:.1f} s ({result['added']} added, {result['unchanged']} unchanged, "
        f"{result['removed']} removed, {len(result['failed'])} failed)"
    ]
    return "\n".join(lines + [f"failed: {f['file']}: {f['error']}" for f in result["failed"]])


def _evaluate_text(result: dict) -> str:
    columns = {
        "n": "n",
        "errors": "errors",
        "em": "em",
        "f1": "f1",
        "abstention_recall": "declined right",
        "answerable_declined": "declined wrong",
    }
    columns |= {"calls": "calls", "prompt_tokens": "read", "output_tokens": "written", "seconds_p50": "s p50"}
    columns |= {"seconds_p90": "s p90"}
    lines = [["mode", *columns.values()]]
    lines += [
        [mode, *("" if row[key] is None else f"{row[key]:g}" for key in columns)]
        for mode, row in result["modes"].items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    tests = [
        f"{t['b']} against {t['a']}, {t['type']}: {t['measure']} {t['delta']:+.3f} (p {t['p']:.4f}, {t['test']})"
        for t in result["paired"]
    ]
    found = ", ".join(f"{name} {value}" for name, value in result["retrieval"].items())
    played = ["The reasoner is a stand-in: these figures are not those of a reasoning model."] * result[
        "stand_in_reasoner"
    ]
    return "\n".join([*table, "", *tests, "", f"retrieval: {found}", *result["plots"], *played])


def _finetune_text(result: dict) -> str:
    loss = result["loss"]
    lines = [
        f"{result['rows']} rows, {result['too_long']} too long, {result['leaked']} too much like a test question",
        f"{result['steps']} steps in {result['seconds']:.0f} s"
        + (f", loss {loss['first']:.3f} to {loss['last']:.3f}" if loss else ""),
    ]
    if result["profile"]:
        lines.append(f"now: kit setup --profile {result['profile']}; kit ask --profile {result['profile']} QUESTION")
    return "\n".join(lines)


def _distill_text(result: dict) -> str:
    kinds = ", ".join(f"{kind} {n}" for kind, n in result["by_type"].items())
    lines = [f"{result['accepted']} accepted ({kinds})"]
    lines += [f"rejected, {reason}: {n}" for reason, n in result["rejected"].items()]
    played = ["The teacher is a stand-in: a small general model."] * result["stand_in_teacher"]
    return "\n".join(lines + played)


def _search_text(result: dict) -> str:
    from kit.retriever import cite

    return "\n\n".join(
        f"{n}. {cite(hit['source'], hit['page'])} (score {hit['score']:.3f})\n{hit['text']}"
        for n, hit in enumerate(result["hits"], 1)
    )


def _rag_text(result: dict) -> str:
    from kit import chat
    from kit.agent import Answer

    return chat.format_answer(Answer(**result))


def _thread_text(result: dict) -> str:
    return f"{result['id']}  {result['turns']} turns  {result['title'] or ''}".rstrip()


def _found(client, args, profile) -> dict:
    return client.search(args.text, args.k or profile.k)


@dataclass(frozen=True)
class Query:
    """What `kit query` asks of `service`: its argument, what it is, how it is asked, and how it is shown."""

    service: str
    text: str
    about: str
    ask: Callable
    show: Callable[[dict], str]


QUERIES = {
    "vector-store": Query("vector-store", "QUERY", "Passages near to a query by meaning.", _found, _search_text),
    "passages": Query(
        "vector-store",
        "SOURCE",
        "Every passage of a source, as the index holds them.",
        lambda client, args, _: client.passages(args.text, args.page),
        _search_text,
    ),
    "retriever": Query("retriever", "QUERY", "Passages by meaning and by words.", _found, _search_text),
    "documents": Query(
        "retriever",
        "QUERY",
        "Whole documents, found by their passages.",
        lambda client, args, profile: client.documents(args.text, args.k or profile.k, args.n),
        _search_text,
    ),
    "rag": Query(
        "rag",
        "QUESTION",
        "An answer, with its sources; what is done and written shows on a terminal.",
        lambda client, args, _: client.ask(args.text, args.thread, _written),
        _rag_text,
    ),
    "new-thread": Query(
        "rag",
        "",
        "Begin a conversation; prints its id, for `kit query rag --thread`.",
        lambda client, *_: client.new_thread(),
        lambda result: result["id"],
    ),
    "threads": Query(
        "rag",
        "",
        "The conversations that are kept.",
        lambda client, *_: {"threads": client.threads()},
        lambda result: "\n".join(map(_thread_text, result["threads"])),
    ),
    "history": Query(
        "rag",
        "ID",
        "The questions and answers of a conversation.",
        lambda client, args, _: {"turns": client.history(args.text)},
        lambda result: "\n\n".join(f"> {t['question']}\n{t['answer']['answer']}" for t in result["turns"]),
    ),
    "clear": Query(
        "rag",
        "ID",
        "Forget a conversation.",
        lambda client, args, _: _forget(client, args.text),
        lambda result: f"The thread {result['cleared']} is forgotten.",
    ),
}
