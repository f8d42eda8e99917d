"""The command line: what can be typed, and what becomes of errors. What a command does is in `kit.commands`.

Results go to standard output, progress and logs to standard error. Exit status: 0 done, 1 the work
failed, 2 wrong use.
"""

import argparse
import logging
import sys
import warnings

from kit import __version__, commands
from kit.client import PORTS
from kit.config import KitError, load_profile

KINDS = ("plain", "hesitant", "misleading", "comparison", "out_of_scope")  # kit.distill.KINDS
ASK_MODES = ("closed", "rag", "reasoner", "agentic")  # kit.agent.MODES, which takes seconds to import
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
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, *parents, **details):
        sub = actions.add_parser(name, help=summary, description=summary, parents=[common, *parents], **details)
        sub.set_defaults(run=run)
        return sub

    command("setup", commands.setup, "Install the engine, fetch the weights, make the models. Safe to repeat.")
    command("doctor", commands.doctor, "Check everything, and name the remedy for what is wrong.")
    ingest = command(
        "ingest", commands.ingest, "Index documents: .pdf .html .md .txt .jsonl; only what changed is read.", place
    )
    ingest.add_argument("paths", nargs="+", metavar="PATH", help="files or folders")
    ingest.add_argument("--chunk-size", type=_positive, metavar="N", help="characters of a chunk")
    ingest.add_argument("--chunk-overlap", type=int, metavar="N", help="characters that neighbours share")
    command(
        "search", commands.search, "Show the passages nearest to a query; no model is asked.", place, reading
    ).add_argument("query", metavar="QUERY")
    ask = command(
        "ask",
        commands.ask,
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
        commands.evaluate,
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
    stages = actions.add_parser("distill", help=summary, description=summary).add_subparsers(
        dest="stage", required=True, metavar="STAGE"
    )
    asking = stages.add_parser(
        "questions",
        parents=[common],
        help="synthetic questions over documents",
        description="Let the primary model ask questions about documents, and keep those that hold: a row for every "
        "try, with the reason where it was rejected.",
    )
    asking.set_defaults(run=commands.distill_questions)
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
    tracing.set_defaults(run=commands.distill_traces)
    tracing.add_argument(
        "--questions", required=True, metavar="FILE", help="what `kit distill questions` wrote, or any question file"
    )
    tracing.add_argument("--split", metavar="NAME", help="only the questions of this split, where the file has splits")
    tracing.add_argument("--tries", type=_positive, default=2, metavar="N", help="for each question (default: 2)")
    for stage in (asking, tracing):
        stage.add_argument("--out", required=True, metavar="FILE", help="a .jsonl file to append rows to")
    tuning = command(
        "finetune",
        commands.finetune,
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
        commands.serve,
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
    questions = actions.add_parser("query", help=summary, description=summary).add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    for name, (text, about, *_) in commands.QUERIES.items():
        query = questions.add_parser(
            name, help=about, description=about, parents=[common, *[reading] * (text == "QUERY")]
        )
        query.set_defaults(run=commands.query)
        query.add_argument("--url", metavar="URL", help="of the service (default: this machine, its usual port)")
        if text:
            query.add_argument("text", metavar=text)
        if name == "rag":
            query.add_argument("--thread", default="", metavar="ID", help="the conversation that it belongs to")
    chat = command("chat", commands.chat, "Talk with the agent in the terminal; type / for what else it knows.", place)
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
