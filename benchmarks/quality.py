"""Right answers, tokens and seconds of every way to answer, the original flow among them, side by side.

    python benchmarks/quality.py                           the test questions of data/, all modes
    python benchmarks/quality.py --split dev --modes rag,agentic --limit 20

All modes answer a question one after the other, on the same engine, weights and machine. Rows are
appended to benchmarks/results/quality-SPLIT/ as they are made, so a stopped run goes on where it was.
Prints one JSON object, and writes the plots beside the rows.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import machine
from original import Original

from kit import agent, engine, evaluation, llm, reasoner, retriever
from kit.agent import MODES, Assistant
from kit.config import Profile, load_profile
from kit.index import Embedder, Index
from kit.llm import chat_model
from kit.retriever import Retriever

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
ALL = ("original", *MODES, "gold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--modes", default=",".join(ALL), help=f"of {', '.join(ALL)}")
    parser.add_argument("--limit", type=int, help="only the first N questions of each type")
    args = parser.parse_args()
    asked = questions(args.split, args.limit)
    print(json.dumps({"machine": machine(), **measured(asked, args.modes.split(","), args.split)}, indent=2))


def questions(split: str, limit: int | None, path: Path = ROOT / "data" / "questions.jsonl") -> list[dict]:
    """The questions of `split`, in turn of each type, so that a run that is stopped has seen all types alike."""
    rows, _ = evaluation.read_questions(path)
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        if row["split"] == split:
            kinds.setdefault(row["type"], []).append(row)
    numbered = [(n / len(kind), row) for kind in kinds.values() for n, row in enumerate(kind[:limit])]
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def measured(asked: list[dict], modes: list[str], split: str) -> dict:
    """Answer, and return what `kit evaluate` prints, and how cleanly the agentic answers came."""
    profile = load_profile()
    out = RESULTS / f"quality-{split}"
    with warm_assistant(profile) as (assistant, server):
        replies = _record(assistant.primary, assistant.reasoner.model)
        if "original" in modes:
            original = Original(profile, server.url, [str(ROOT / "data/collection")], profile.home / "index-original")

        def answer(question: dict, mode: str) -> dict:
            if mode == "original":
                return original.ask(question["question"])
            replies.clear()
            return assistant.answer(question, mode) | _calls(assistant, replies)

        settings = {"profile": profile.name, "k": profile.k, "chunk_size": profile.chunk_size, "kit": _answering()}
        rows = evaluation.run(asked, modes, answer, out, settings, lambda error: engine.revive(server, profile))
        result = evaluation.summarize(asked, rows)
        result["retrieval"] = evaluation.retrieval(asked, assistant.retriever.search, profile.k)
    evaluation.plot(result, out)
    agentic = [row for row in rows if row["mode"] == "agentic"]
    return {"stand_in_reasoner": profile.stand_in, "split": split, **_cleanness(agentic), **result}


@contextmanager
def warm_assistant(profile: Profile) -> Iterator[tuple[Assistant, engine.Engine]]:
    """An assistant over the demo's index and its engine, models and embeddings loaded."""
    with engine.running(profile) as server:
        models = [chat_model(profile, role, server.url) for role in ("primary", "reasoner")]
        assistant = Assistant(profile, *models, Retriever(Index.open(profile.index, Embedder(profile.embedding_path))))
        for model in models:
            model.complete([{"role": "user", "content": "Hello"}], max_tokens=1)
        assistant.retriever.search("warm", 1)
        yield assistant, server


def _answering() -> str:
    """A sum over the modules that answer, prompts among them: rows of another state of them are not mixed in."""
    modules = (reasoner, agent, retriever, llm)
    return hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in modules)).hexdigest()[:12]


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


def overhead_share(row: dict) -> float:
    """The share of a row's seconds that neither the engine nor the search took."""
    return 1 - sum(row["usage"][part] for part in ("engine_seconds", "search_seconds", "load_seconds")) / row["seconds"]


def _cleanness(rows: list[dict]) -> dict:
    done = [row for row in rows if not row["error"]]
    shares = [overhead_share(row) for row in done]
    return {
        "unhandled": [row["error"] for row in rows if row["error"]],
        "unparsed_tool_calls": sum(len(row["agent_errors"]) for row in done),
        "calls_over_budget": sum(row["over_budget"] for row in done),
        "longest_load_seconds": max((row["longest_load"] for row in done), default=None),
        "overhead_share_median": round(statistics.median(shares), 4) if shares else None,
    }


if __name__ == "__main__":
    main()
