"""What each command of `kit` does: it wires the modules together, prints the result, and holds no logic of its own.

Every function here takes the arguments that `kit.cli` has read, and the profile, and returns the exit
status. What is heavy is imported where it is used, so that `kit --help` is quick.
"""

import contextlib
import hashlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

from kit import printed, queries
from kit.client import PORTS
from kit.config import KitError, expanded, remember_profile, service_tokens

# Questions to click on the web page, each shown where its source is in the index.
DEMO = {
    "Who freed Solveig from the net?": "incident-report-tarrin-maid.pdf",
    "What is the daily meal allowance under version 3 of the travel expense policy?": "travel-expense-policy-v3.pdf",
    "Who chairs the board?": "board-minutes-2024-03-21.pdf",
}

# Fields of a profile that decide where and how fast it runs, not what is answered: rows of others may stand beside.
ELSEWHERE = {"why", "home", "ollama_host", "memory_gib", "disk_gib"}


def setup(args, profile) -> int:
    from kit import models

    _say(f"Profile {profile.name}: {profile.why}.")
    result = models.setup(profile)
    remember_profile(profile, args.profile)
    _print(args, result, printed.setup)
    return 0


def doctor(args, profile) -> int:
    from kit import doctor

    checks = doctor.check(profile)
    ok = all(check["ok"] for check in checks)
    _print(args, {"ok": ok, "checks": checks}, printed.doctor)
    return 0 if ok else 1


def ingest(args, profile) -> int:
    from kit.index import Embedder, Index

    size = args.chunk_size if args.chunk_size is not None else profile.chunk_size
    overlap = args.chunk_overlap if args.chunk_overlap is not None else profile.chunk_overlap
    with Index.create(_folder(args, profile), Embedder(profile.embedding_path), size, overlap) as index:
        result = index.ingest(args.paths)
    _print(args, result, printed.ingest)
    return 0


def search(args, profile) -> int:
    hits = _retriever(args, profile).search(args.query, args.k or profile.k)
    _print(args, {"hits": [asdict(hit) for hit in hits]}, printed.passages)
    return 0


def ask(args, profile) -> int:
    with _assistants(args, profile) as (new_assistant, _):
        answer = new_assistant().ask(args.question, args.mode, args.k or 0, args.max_steps or 0)
    _print(args, asdict(answer), printed.answer)
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

    asked = queries.QUERIES[args.what]
    client = Client(args.url or f"http://127.0.0.1:{PORTS[asked.service]}", next(iter(service_tokens()), ""))
    _print(args, asked.ask(client, args, profile), asked.show)
    return 0


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
    _print(args, result | {"stand_in_teacher": profile.stand_in}, printed.distillation)
    return 0


def distill_traces(args, profile) -> int:
    from kit import distill
    from kit.llm import chat_model
    from kit.reasoner import Reasoner

    rows, _ = _questions(args.questions)
    asked = [row for row in rows if args.split in (None, row.get("split"))]
    retriever = _retriever(args, profile)
    with _engine(profile) as (_, url):
        # No `stand_in`, whoever it is: what such a one is asked besides would stand in no training row.
        teacher = Reasoner(chat_model(profile, "reasoner", url), profile.thinking_tokens, profile.answer_tokens)
        result = distill.traces(asked, retriever, teacher, args.k or profile.k, args.out, args.tries)
    _print(args, result | {"stand_in_teacher": profile.stand_in}, printed.distillation)
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
    _print(args, result, printed.finetuning)
    return 0


def _known(paths: list[str]) -> list[str]:
    """The questions to keep away from: all of the files, but for those that are there for training."""
    return [row["question"] for path in paths for row in _questions(path)[0] if row.get("split") != "train"]


def _questions(path: str) -> tuple[list[dict], list[dict]]:
    """The rows of a question file, less rejected tries of `distill questions`; and lines left out, which are said."""
    from kit import evaluation

    rows, left_out = evaluation.read_questions(path)
    for line in left_out:
        _say(line["error"])
    return [row for row in rows if not row.get("rejected")], left_out


def evaluate(args, profile) -> int:
    from kit import engine, evaluation

    questions, left_out = _questions(args.questions)
    questions = questions[: args.limit]
    bare = [question["id"] for question in questions if question["answerable"] and not question["sources"]]
    if "gold" in args.modes and bare:
        raise KitError(
            f"Mode gold reads the sources of a question, and {len(bare)} in {args.questions} have none, "
            f"{bare[0]!r} the first; add them, or leave gold out of --modes."
        )
    settings = {key: value for key, value in asdict(profile).items() if key not in ELSEWHERE}
    settings |= {role: profile.model_name(role) for role in ("primary", "reasoner")}
    with _assistants(args, profile) as (new_assistant, server):
        assistant = new_assistant()
        settings["index"] = assistant.retriever.index.fingerprint()

        def recover(error: KitError) -> bool:
            return server is not None and engine.revive(server, profile)

        rows = evaluation.run(questions, args.modes, assistant.answer, args.out, settings, recover)
        result = evaluation.summarize(questions, rows)
        result["retrieval"] = evaluation.retrieval(questions, assistant.retriever.search, profile.k)
    plots = evaluation.plot(result, args.out)
    result |= {"stand_in_reasoner": profile.stand_in, "left_out": left_out, "plots": [str(path) for path in plots]}
    _print(args, result, printed.evaluation)
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
