"""The command line: what can be typed, and what becomes of errors. What a command does is in `kit.commands`.

Results go to standard output, progress and logs to standard error. Exit status: 0 done, 1 the work
failed, 2 wrong use.
"""

import argparse
import logging
import sys
import warnings

from kit import __version__, commands, queries
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
    except OSError as error:  # a full disk, a folder that cannot be written
        if args.debug:
            raise
        print(f"kit: {error}; mend that, and run the same command again.", file=sys.stderr)
        status = 1
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
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_asking(actions)
    _add_evaluate(actions)
    _add_distill(actions)
    _add_finetune(actions)
    _add_serving(actions)
    sub = _command(
        actions, "chat", commands.chat, "Talk with the agent in the terminal; type / for what else it knows.", _index
    )
    sub.add_argument("--web", action="store_true", help="as a web page on 127.0.0.1, with a memory for each visitor")
    sub.add_argument("--port", type=_positive, metavar="N", help="of the page (default: the first free one from 7860)")
    return parser


def _command(actions, name: str, run, summary: str, *options, **details) -> argparse.ArgumentParser:
    """A command with the options that all have, and those that `options` add."""
    sub = actions.add_parser(name, help=summary, **({"description": summary} | details))
    sub.set_defaults(run=run)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--profile", metavar="P", help="ci, laptop, gpu, gpu-large, or a .toml file of your own")
    sub.add_argument("--debug", action="store_true", help="show tracebacks and logs")
    for option in options:
        option(sub)
    return sub


def _index(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--index", metavar="DIR", help="folder of the index (default: the demo's, under KIT_HOME)")


def _k(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--k", type=_positive, metavar="N", help="passages a search returns (default: the profile's)")


def _known(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--known", action="append", default=[], metavar="FILE", help="test questions to keep away from")


def _add_asking(actions) -> None:
    _command(
        actions, "setup", commands.setup, "Install the engine, fetch the weights, make the models. Safe to repeat."
    )
    _command(actions, "doctor", commands.doctor, "Check everything, and name the remedy for what is wrong.")
    summary = "Index documents: .pdf .html .md .txt .jsonl; only what changed is read."
    sub = _command(actions, "ingest", commands.ingest, summary, _index)
    sub.add_argument("paths", nargs="+", metavar="PATH", help="files or folders")
    sub.add_argument("--chunk-size", type=_positive, metavar="N", help="characters of a chunk")
    sub.add_argument("--chunk-overlap", type=int, metavar="N", help="characters that neighbours share")
    summary = "Show the passages nearest to a query; no model is asked."
    sub = _command(actions, "search", commands.search, summary, _index, _k)
    sub.add_argument("query", metavar="QUERY")
    sub = _command(
        actions,
        "ask",
        commands.ask,
        "Answer one question from the index, with sources, steps, tokens and seconds.",
        _index,
        _k,
        epilog="modes: closed, the primary model alone; rag, it reads the first k passages; reasoner, the reasoning "
        "model reads them; agentic, the primary model calls the reasoner as a tool and tries again.",
    )
    sub.add_argument("question", metavar="QUESTION")
    sub.add_argument("--mode", choices=ASK_MODES, default="agentic")
    sub.add_argument("--max-steps", type=_positive, metavar="N", help="calls of the primary model, at most")


def _add_evaluate(actions) -> None:
    sub = _command(
        actions,
        "evaluate",
        commands.evaluate,
        "Answer a file of questions in several modes and measure it; a stopped run goes on where it was.",
        _index,
        epilog="Rows are appended to OUT/rows.jsonl as they are made. modes: those of ask, and gold: plain answering "
        "over the gold sources of each question, the ceiling of the weights.",
    )
    sub.add_argument("--questions", required=True, metavar="FILE", help="a .jsonl file of questions")
    modes = _several("mode", (*ASK_MODES, "gold"))
    sub.add_argument("--modes", type=modes, default="rag,agentic", metavar="A,B", help="default: rag,agentic")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for rows and plots")
    sub.add_argument("--limit", type=_positive, metavar="N", help="only the first N questions")


def _add_distill(actions) -> None:
    summary = "Make the data that a lean model is trained on; a stopped run goes on where it was."
    stages = actions.add_parser("distill", help=summary, description=summary).add_subparsers(
        dest="stage", required=True, metavar="STAGE"
    )
    asking = _command(
        stages,
        "questions",
        commands.distill_questions,
        "synthetic questions over documents",
        _known,
        description="Let the primary model ask questions about documents, and keep those that hold: a row for every "
        "try, with the reason where it was rejected.",
    )
    asking.add_argument("paths", nargs="+", metavar="PATH", help="files or folders: those for training only")
    asking.add_argument("--count", type=_positive, default=100, metavar="N", help="accepted questions (default: 100)")
    kinds = ", ".join(KINDS)
    asking.add_argument(
        "--kinds", type=_several("kind", KINDS), default=",".join(KINDS), metavar="A,B", help=f"default: {kinds}"
    )
    asking.add_argument("--templates", metavar="DIR", help="your own texts (default: those in kit/templates)")
    tracing = _command(
        stages,
        "traces",
        commands.distill_traces,
        "a teacher's reasoning over what is retrieved",
        _index,
        _k,
        description="Let the reasoner answer questions from the passages that are retrieved, and keep what is right.",
    )
    tracing.add_argument(
        "--questions", required=True, metavar="FILE", help="what `kit distill questions` wrote, or any question file"
    )
    tracing.add_argument("--split", metavar="NAME", help="only the questions of this split, where the file has splits")
    tracing.add_argument("--tries", type=_positive, default=2, metavar="N", help="for each question (default: 2)")
    for stage in (asking, tracing):
        stage.add_argument("--out", required=True, metavar="FILE", help="a .jsonl file to append rows to")


def _add_finetune(actions) -> None:
    sub = _command(
        actions,
        "finetune",
        commands.finetune,
        "Train a small model on a teacher's traces, and hand it to Ollama; a stopped run goes on where it was.",
        _known,
        epilog="By default a LoRA; --full trains all weights with the settings of arXiv 2508.11386, on several GPUs by "
        "`accelerate launch` (see modelfiles/fsdp.yaml). OUT then holds the adapter, the merged model, checkpoints, "
        "the loss, and a profile file with the lean model as the reasoner.",
    )
    sub.add_argument("traces", metavar="TRACES", help="what `kit distill traces` wrote")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder for checkpoints, plots and the model")
    sub.add_argument("--name", default="lean", metavar="NAME", help="of the new model (default: lean)")
    sub.add_argument("--base", metavar="ID", help="a Hugging Face id or folder (default: the Qwen2.5-Coder-0.5B here)")
    sub.add_argument("--full", action="store_true", help="all weights instead of a LoRA")
    for name, metavar, kind, about in (
        ("--epochs", "N", _above_zero, "times that every row is read (default: 2; with --full 5)"),
        ("--learning-rate", "R", _above_zero, "default: 2e-4; with --full 1e-5"),
        ("--block", "N", _positive, "tokens; a longer row is left out and counted (default: 2048; with --full 32768)"),
        ("--batch", "N", _positive, "rows between two steps of the optimizer (default: 4; with --full 16)"),
        ("--steps", "N", _positive, "at most so many steps"),
    ):
        sub.add_argument(name, type=kind, metavar=metavar, help=about)
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: auto")


def _add_serving(actions) -> None:
    sub = _command(
        actions,
        "serve",
        commands.serve,
        "Serve the index, the retriever or the assistant over HTTP, on 127.0.0.1 unless told otherwise.",
        _index,
        epilog="On another --host a bearer token is asked for: KIT_TOKEN holds it, or one for each user with commas "
        "between. /health, /ready and /openapi.json are on every service. After an ingest, start it again.",
    )
    sub.add_argument("what", choices=PORTS)
    sub.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    ports = ", ".join(f"{port} for {name}" for name, port in PORTS.items())
    sub.add_argument("--port", type=int, metavar="N", help=f"port to listen on (default: {ports}; 0 for a free one)")
    summary = "Ask a service of `kit serve`; KIT_TOKEN holds the token, where one is asked for."
    asked = actions.add_parser("query", help=summary, description=summary).add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )
    for name, query in queries.QUERIES.items():
        sub = _command(asked, name, commands.query, query.about, *[_k] * (query.text == "QUERY"))
        sub.add_argument("--url", metavar="URL", help="of the service (default: this machine, its usual port)")
        if query.text:
            sub.add_argument("text", metavar=query.text)
        if name == "passages":
            sub.add_argument("--page", type=_positive, metavar="N", help="only this page of it")
        if name == "documents":
            sub.add_argument("--n", type=_positive, default=3, metavar="N", help="documents, at most (default: 3)")
        if name == "rag":
            sub.add_argument("--thread", default="", metavar="ID", help="the conversation that it belongs to")


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
