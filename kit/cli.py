"""The command line: it wires the modules together and holds no logic of its own.

Results go to standard output, progress and logs to standard error. Exit status: 0 done, 1 the work
failed, 2 wrong use.
"""

import argparse
import contextlib
import json
import logging
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from kit import __version__
from kit.client import PORTS
from kit.config import KitError, load_profile, remember_profile, service_tokens

QUERIES = {  # what `kit query` asks: its argument, and what it is
    "vector-store": ("QUERY", "Passages near to a query by meaning."),
    "retriever": ("QUERY", "Passages by meaning and by words."),
    "rag": ("QUESTION", "An answer, with its sources; what is done and written shows on a terminal."),
    "new-thread": ("", "Begin a conversation; prints its id, for `kit query rag --thread`."),
    "threads": ("", "The conversations that are kept."),
    "history": ("ID", "The questions and answers of a conversation."),
    "clear": ("ID", "Forget a conversation."),
}
KINDS = ("plain", "hesitant", "misleading", "comparison", "out_of_scope")  # kit.distill.KINDS
ASK_MODES = ("closed", "rag", "reasoner", "agentic")  # kit.agent.MODES, which takes seconds to import
# Questions to click on the web page, each shown where its source is in the index.
DEMO = {
    "Who freed Solveig from the net?": "incident-report-tarrin-maid.pdf",
    "What is the daily meal allowance under version 3 of the travel expense policy?": "travel-expense-policy-v3.pdf",
    "Who chairs the board?": "board-minutes-2024-03-21.pdf",
}
RECIPE = ("epochs", "learning_rate", "block", "batch", "steps", "device")  # of kit.finetune.Recipe
EXAMPLES = """\
a first session:
  kit setup                              install the engine and the models (once, some minutes)
  kit ingest data/collection             read, split, embed and index a folder of documents
  kit search "notice period"             look at what retrieval alone finds
  kit ask "Who signed the lease?"        let the agent answer, with sources
  kit chat                               the same as a conversation
  kit evaluate --questions q.jsonl --out results     measure it on questions of your own

`kit COMMAND --help` explains one command. Every command takes --json, --profile and --debug.
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its status."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.ERROR, stream=sys.stderr)
    if not args.debug:
        warnings.simplefilter("ignore")
    # Chroma imports jsonschema, and that compiles this package's grammar of web addresses, which is not used
    # here: 2 to 5 s for every command. JupyterLab brings the package, and jsonschema does without it.
    sys.modules.setdefault("rfc3987_syntax", None)
    try:
        status = args.run(args, _profile(args))
    except KitError as error:
        if args.debug:
            raise
        print(f"kit: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("kit: stopped.", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output has had enough, as in `kit search … | head -1`
        sys.stderr.close()
        status = 0
    sys.exit(status)


def _profile(args):
    try:
        return load_profile(args.profile)
    except KitError as error:
        print(f"kit: {error}", file=sys.stderr)
        sys.exit(2)


def _setup(args, profile) -> int:
    from kit import models

    _say(f"Profile {profile.name}: {profile.why}.")
    result = models.setup(profile)
    remember_profile(profile, args.profile)
    _print(args, result, _setup_text)
    return 0


def _doctor(args, profile) -> int:
    from kit import doctor

    checks = doctor.check(profile)
    ok = all(check["ok"] for check in checks)
    _print(args, {"ok": ok, "checks": checks}, _doctor_text)
    return 0 if ok else 1


def _ingest(args, profile) -> int:
    from kit.index import Embedder, Index

    size = args.chunk_size if args.chunk_size is not None else profile.chunk_size
    overlap = args.chunk_overlap if args.chunk_overlap is not None else profile.chunk_overlap
    with Index.create(_folder(args, profile), Embedder(profile.embedding_path), size, overlap) as index:
        result = index.ingest(args.paths)
    _print(args, result, _ingest_text)
    return 0


def _search(args, profile) -> int:
    hits = _retriever(args, profile).search(args.query, args.k or profile.k)
    _print(args, {"hits": [asdict(hit) for hit in hits]}, _search_text)
    return 0


def _ask(args, profile) -> int:
    from kit import chat

    with _assistants(args, profile) as (new_assistant, _):
        answer = new_assistant().ask(args.question, args.mode, args.k or 0, args.max_steps or 0)
    _print(args, asdict(answer), lambda _: chat.format_answer(answer))
    return 0


def _chat(args, profile) -> int:
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


def _serve(args, profile) -> int:
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

        app = service.rag(new_assistant, Threads(profile.home / "threads.sqlite"), tokens, missing)
        service.run(app, args.host, port, _say)
    return 0


def _query(args, profile) -> int:
    from kit.client import Client

    service = args.what if args.what in PORTS else "rag"
    client = Client(args.url or f"http://127.0.0.1:{PORTS[service]}", next(iter(service_tokens()), ""))
    if args.what == "new-thread":
        result = client.new_thread()
    elif args.what == "threads":
        result = {"threads": client.threads()}
    elif args.what == "rag":
        result = client.ask(args.text, args.thread, _written)
    elif args.what == "history":
        result = {"turns": client.history(args.text)}
    elif args.what == "clear":
        client.clear(args.text)
        result = {"cleared": args.text}
    else:
        result = client.search(args.text, args.k or profile.k)
    _print(args, result, QUERY_TEXTS.get(args.what, _search_text))
    return 0


def _distill_questions(args, profile) -> int:
    from kit import distill
    from kit.corpus import whole_documents
    from kit.index import Embedder
    from kit.llm import chat_model

    failed: list[dict] = []
    documents = whole_documents(args.paths, failed)
    for file in failed:
        _say(f"left out: {file['file']}: {file['error']}")
    known = [row["question"] for path in args.known for row in _questions(path)[0]]
    templates = Path(args.templates) if args.templates else distill.TEMPLATES
    embed = Embedder(profile.embedding_path).encode
    with _engine(profile) as (_, url):
        model = chat_model(profile, "primary", url)
        result = distill.questions(documents, model, embed, args.out, args.count, known, args.kinds, templates)
    _print(args, result | {"stand_in_teacher": profile.stand_in}, _distill_text)
    return 0


def _distill_traces(args, profile) -> int:
    from kit import distill
    from kit.llm import chat_model
    from kit.reasoner import Reasoner

    asked = [row for row in _questions(args.questions)[0] if not row.get("rejected")]
    retriever = _retriever(args, profile)
    with _engine(profile) as (_, url):
        teacher = Reasoner(chat_model(profile, "reasoner", url), profile.thinking_tokens, profile.answer_tokens)
        result = distill.traces(asked, retriever, teacher, args.k or profile.k, args.out, args.tries)
    _print(args, result | {"stand_in_teacher": profile.stand_in}, _distill_text)
    return 0


def _finetune(args, profile) -> int:
    from kit import distill, engine, evaluation, finetune
    from kit.index import Embedder

    recipe = finetune.STUDY if args.full else finetune.Recipe()
    changed = {name: value for name in RECIPE if (value := getattr(args, name)) is not None}
    known = [row["question"] for path in args.known for row in _questions(path)[0]]
    if not Path(args.traces).is_file():
        raise KitError(f"There is no file {args.traces}; make one with `kit distill traces`.")
    accepted = [row for row in evaluation.read_rows(args.traces) if not row["rejected"]]
    kept = distill.apart(accepted, known, Embedder(profile.embedding_path).encode)
    rows = [distill.training_row(row) for row in kept]
    result = finetune.train(rows, args.base or finetune.BASE, profile.home, args.out, replace(recipe, **changed))
    result |= {"leaked": len(accepted) - len(kept), "profile": None}
    if profile.provider == "ollama":
        with engine.running(profile) as server:
            result["profile"] = str(finetune.into_ollama(args.out, args.name, profile, server.url))
    _print(args, result, _finetune_text)
    return 0


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


def _evaluate(args, profile) -> int:
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
    return Path(args.index).expanduser() if args.index else profile.index


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
        _say("… found" if verdict["sufficient"] else f"… not found; better query: {verdict['better_query']}")


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


QUERY_TEXTS = {
    "rag": _rag_text,
    "new-thread": lambda result: result["id"],
    "threads": lambda result: "\n".join(map(_thread_text, result["threads"])),
    "history": lambda result: "\n\n".join(f"> {t['question']}\n{t['answer']['answer']}" for t in result["turns"]),
    "clear": lambda result: f"The thread {result['cleared']} is forgotten.",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kit",
        description="Agentic RAG on local models: a fast primary model, and a reasoning model as its tool.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kit {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--profile", metavar="P", help="ci, laptop, gpu, gpu-large, or a .toml file of your own")
    common.add_argument("--debug", action="store_true", help="show tracebacks and logs")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--index", metavar="DIR", help="folder of the index (default: the demo's, under KIT_HOME)")
    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument("--k", type=_positive, metavar="N", help="passages a search returns (default: the profile's)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, *parents, **details):
        sub = commands.add_parser(name, help=summary, description=summary, parents=[common, *parents], **details)
        sub.set_defaults(run=run)
        return sub

    command("setup", _setup, "Install the engine, fetch the weights, make the models. Safe to repeat.")
    command("doctor", _doctor, "Check everything, and name the remedy for what is wrong.")
    ingest = command(
        "ingest", _ingest, "Index documents: .pdf .html .md .txt .jsonl; only what changed is read.", place
    )
    ingest.add_argument("paths", nargs="+", metavar="PATH", help="files or folders")
    ingest.add_argument("--chunk-size", type=_positive, metavar="N", help="characters of a chunk")
    ingest.add_argument("--chunk-overlap", type=int, metavar="N", help="characters that neighbours share")
    command("search", _search, "Show the passages nearest to a query; no model is asked.", place, reading).add_argument(
        "query", metavar="QUERY"
    )
    ask = command(
        "ask",
        _ask,
        "Answer one question from the index, with sources, steps, tokens and seconds.",
        place,
        reading,
        epilog="modes: closed, the primary model alone; rag, it reads the first k passages; reasoner, the reasoning "
        "model reads them; agentic, the primary model calls the reasoner as a tool and tries again.",
    )
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--mode", choices=ASK_MODES, default="agentic")
    ask.add_argument("--max-steps", type=_positive, metavar="N", help="calls of the primary model, at most")
    evaluate = command(
        "evaluate",
        _evaluate,
        "Answer a file of questions in several modes and measure it; a stopped run goes on where it was.",
        place,
        epilog="Rows are appended to OUT/rows.jsonl as they are made. modes: those of ask, and gold: plain answering "
        "over the gold sources of each question, the ceiling of the weights.",
    )
    evaluate.add_argument("--questions", required=True, metavar="FILE", help="a .jsonl file of questions")
    evaluate.add_argument(
        "--modes",
        type=_several("mode", (*ASK_MODES, "gold")),
        default="rag,agentic",
        metavar="A,B",
        help="default: rag,agentic",
    )
    evaluate.add_argument("--out", required=True, metavar="DIR", help="folder for rows and plots")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="only the first N questions")
    summary = "Make the data that a lean model is trained on; a stopped run goes on where it was."
    stages = commands.add_parser("distill", help=summary, description=summary).add_subparsers(
        dest="stage", required=True, metavar="STAGE"
    )
    asking = stages.add_parser(
        "questions",
        parents=[common],
        help="synthetic questions over documents",
        description="Let the primary model ask questions about documents, and keep those that hold: a row for every "
        "try, with the reason where it was rejected.",
    )
    asking.set_defaults(run=_distill_questions)
    asking.add_argument("paths", nargs="+", metavar="PATH", help="files or folders: those for training only")
    asking.add_argument("--count", type=_positive, default=100, metavar="N", help="accepted questions (default: 100)")
    asking.add_argument(
        "--kinds",
        type=_several("kind", KINDS),
        default=",".join(KINDS),
        metavar="A,B",
        help=f"default: {', '.join(KINDS)}",
    )
    asking.add_argument("--known", action="append", default=[], metavar="FILE", help="test questions to keep away from")
    asking.add_argument("--templates", metavar="DIR", help="your own texts (default: those in kit/templates)")
    tracing = stages.add_parser(
        "traces",
        parents=[common, place, reading],
        help="a teacher's reasoning over what is retrieved",
        description="Let the reasoner answer questions from the passages that are retrieved, and keep what is right.",
    )
    tracing.set_defaults(run=_distill_traces)
    tracing.add_argument("--questions", required=True, metavar="FILE", help="what `kit distill questions` wrote")
    tracing.add_argument("--tries", type=_positive, default=2, metavar="N", help="for each question (default: 2)")
    for stage in (asking, tracing):
        stage.add_argument("--out", required=True, metavar="FILE", help="a .jsonl file to append rows to")
    tuning = command(
        "finetune",
        _finetune,
        "Train a small model on a teacher's traces, and hand it to Ollama; a stopped run goes on where it was.",
        epilog="By default a LoRA; --full trains all weights with the settings of arXiv 2508.11386, on several GPUs by "
        "`accelerate launch` (see modelfiles/fsdp.yaml). OUT then holds the adapter, the merged model, checkpoints, "
        "the loss, and a profile file with the lean model as the reasoner.",
    )
    tuning.add_argument("traces", metavar="TRACES", help="what `kit distill traces` wrote")
    tuning.add_argument("--out", required=True, metavar="DIR", help="folder for checkpoints, plots and the model")
    tuning.add_argument("--name", default="lean", metavar="NAME", help="of the new model (default: lean)")
    tuning.add_argument(
        "--base", metavar="ID", help="a Hugging Face id or folder (default: the Qwen2.5-Coder-0.5B here)"
    )
    tuning.add_argument("--known", action="append", default=[], metavar="FILE", help="test questions to keep away from")
    tuning.add_argument("--full", action="store_true", help="all weights instead of a LoRA")
    for name, metavar, kind, about in (
        ("--epochs", "N", _above_zero, "times that every row is read (default: 2; with --full 5)"),
        ("--learning-rate", "R", _above_zero, "default: 2e-4; with --full 1e-5"),
        ("--block", "N", _positive, "tokens; a longer row is left out and counted (default: 2048; with --full 32768)"),
        ("--batch", "N", _positive, "rows between two steps of the optimizer (default: 4; with --full 16)"),
        ("--steps", "N", _positive, "at most so many steps"),
    ):
        tuning.add_argument(name, type=kind, metavar=metavar, help=about)
    tuning.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: auto")
    serve = command(
        "serve",
        _serve,
        "Serve the index, the retriever or the assistant over HTTP, on 127.0.0.1 unless told otherwise.",
        place,
        epilog="On another --host a bearer token is asked for: KIT_TOKEN holds it, or one for each user with commas "
        "between. /health, /ready and /openapi.json are on every service. After an ingest, start it again.",
    )
    serve.add_argument("what", choices=PORTS)
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    ports = ", ".join(f"{port} for {name}" for name, port in PORTS.items())
    serve.add_argument("--port", type=int, metavar="N", help=f"port to listen on (default: {ports}; 0 for a free one)")
    summary = "Ask a service of `kit serve`; KIT_TOKEN holds the token, where one is asked for."
    questions = commands.add_parser("query", help=summary, description=summary).add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    for name, (text, about) in QUERIES.items():
        query = questions.add_parser(
            name, help=about, description=about, parents=[common, *[reading] * (text == "QUERY")]
        )
        query.set_defaults(run=_query)
        query.add_argument("--url", metavar="URL", help="of the service (default: this machine, its usual port)")
        if text:
            query.add_argument("text", metavar=text)
        if name == "rag":
            query.add_argument("--thread", default="", metavar="ID", help="the conversation that it belongs to")
    chat = command("chat", _chat, "Talk with the agent in the terminal; type / for what else it knows.", place)
    chat.add_argument("--web", action="store_true", help="as a web page on 127.0.0.1, with a memory for each visitor")
    chat.add_argument("--port", type=_positive, metavar="N", help="of the page (default: the first free one from 7860)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _several(noun: str, known: tuple[str, ...]):
    """Reads names of `known` with commas between."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {noun} {wrong[0]!r}; choose of {', '.join(known)}")
        return list(dict.fromkeys(names))

    return read
