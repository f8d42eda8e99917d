"""How fast the first answer comes, and whether every answer of the demo's questions comes cleanly.

    python benchmarks/first_answer.py                     the dev questions of data/, agentic, one warm process
    python benchmarks/first_answer.py --from-nothing      `make demo` twice and `make test`, on a clean clone

Prints one JSON object. Rows are appended to benchmarks/results/ as they are made, so a stopped run
goes on where it was; --fresh starts again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine
from quality import questions as in_turn

from kit import engine, evaluation
from kit.agent import Assistant
from kit.config import load_profile
from kit.index import Embedder, Index
from kit.llm import chat_model
from kit.retriever import Retriever

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from-nothing", action="store_true", help="time `make demo` and `make test` instead")
    parser.add_argument("--limit", type=int, help="only the first N questions")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    args = parser.parse_args()
    figures = from_nothing() if args.from_nothing else questions(args.limit, args.fresh)
    print(json.dumps({"machine": machine(), **figures}, indent=2, ensure_ascii=False))


def questions(limit: int | None, fresh: bool) -> dict:
    """The dev questions of the collection in agentic mode, in turn of each type, in one warm process."""
    asked = in_turn("dev", None)[:limit]
    out = RESULTS / "first_answer"
    if fresh:
        (out / evaluation.ROWS).unlink(missing_ok=True)
    profile = load_profile()
    with engine.running(profile) as server:
        primary, reasoner = (chat_model(profile, role, server.url) for role in ("primary", "reasoner"))
        retriever = Retriever(Index.open(profile.index, Embedder(profile.embedding_path)))
        assistant = Assistant(profile, primary, reasoner, retriever)
        replies = _record(primary, reasoner)
        for model in (primary, reasoner):  # warm: loads the models, and the embeddings
            model.complete([{"role": "user", "content": "Hello"}], max_tokens=1)
        retriever.search("warm", 1)

        def answer(question: dict, mode: str) -> dict:
            replies.clear()
            return assistant.answer(question, mode) | _calls(assistant, replies)

        settings = {"profile": profile.name, "k": profile.k, "chunk_size": profile.chunk_size}
        rows = evaluation.run(asked, ["agentic"], answer, out, settings)
    summary = evaluation.summarize(asked, rows)["modes"]["agentic"]
    return {"profile": profile.name, "stand_in_reasoner": profile.stand_in, **_cleanness(rows), **summary}


def _record(*models) -> list:
    """Keep every reply of `models`, so that load times and budgets are known for each call."""
    replies: list = []
    for model in models:

        def complete(*args, original=model.complete, default=model.max_tokens, **kwargs):
            reply = original(*args, **kwargs)
            replies.append((reply, kwargs.get("max_tokens") or default))
            return reply

        model.complete = complete
    return replies


def _calls(assistant: Assistant, replies: list) -> dict:
    """What the calls of one answer did that they should not."""
    errors = [str(e) for step in assistant.agent.memory.steps if (e := getattr(step, "error", None))]
    return {
        "agent_errors": [error for error in errors if "max steps" not in error],
        "over_budget": sum(reply.usage.output_tokens > budget for reply, budget in replies),
        "longest_load": max((reply.usage.load_seconds for reply, _ in replies), default=0.0),
    }


def _cleanness(rows: list[dict]) -> dict:
    done = [row for row in rows if not row["error"]]
    parts = ("engine_seconds", "search_seconds", "load_seconds")
    shares = [1 - sum(row["usage"][part] for part in parts) / row["seconds"] for row in done]
    return {
        "unhandled": [row["error"] for row in rows if row["error"]],
        "unparsed_tool_calls": sum(len(row["agent_errors"]) for row in done),
        "calls_over_budget": sum(row["over_budget"] for row in done),
        "longest_load_seconds": max((row["longest_load"] for row in done), default=None),
        "overhead_share_median": round(statistics.median(shares), 4) if shares else None,
    }


def from_nothing() -> dict:
    """`make demo` on a clean clone with an empty home and no cache, then again; then `make test` twice."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "clone", Path(folder) / "home"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        home.mkdir()
        keep = {
            k: v for k, v in os.environ.items() if not k.startswith(("KIT_", "XDG_", "UV_", "VIRTUAL_ENV", "OLLAMA"))
        }
        environment = {**keep, "HOME": str(home)}
        for name, command in (
            ("demo_from_nothing", "demo"),
            ("demo_again", "demo"),
            ("test_after_demo", "test"),
        ):
            started = time.perf_counter()
            run = subprocess.run(["make", command], cwd=clone, env=environment, stdout=sys.stderr)
            figures[name] = {"seconds": round(time.perf_counter() - started, 1), "status": run.returncode}
    return figures


if __name__ == "__main__":
    main()
