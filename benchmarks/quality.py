"""Right answers, tokens and seconds of every way to answer, the original flow among them, side by side.

    python benchmarks/quality.py                           the test questions of data/, all modes
    python benchmarks/quality.py --split dev --modes rag,agentic --limit 20

All modes answer a question one after the other, on the same engine, weights and machine. Rows are
appended to benchmarks/results/quality-SPLIT/ as they are made, so a stopped run goes on where it was.
Prints one JSON object, and writes the plots beside the rows.
"""

import argparse
import json
from pathlib import Path

from machine import machine
from original import Original

from kit import engine, evaluation
from kit.agent import MODES, Assistant
from kit.config import load_profile
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


def questions(split: str, limit: int | None) -> list[dict]:
    """The questions of `split`, in turn of each type, so that a run that is stopped has seen all types alike."""
    rows, _ = evaluation.read_questions(ROOT / "data" / "questions.jsonl")
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        if row["split"] == split:
            kinds.setdefault(row["type"], []).append(row)
    numbered = [(n / len(kind), row) for kind in kinds.values() for n, row in enumerate(kind[:limit])]
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def measured(asked: list[dict], modes: list[str], split: str) -> dict:
    """Answer, and return what `kit evaluate` prints."""
    profile = load_profile()
    out = RESULTS / f"quality-{split}"
    collection = str(ROOT / "data" / "collection")
    with engine.running(profile) as server:
        primary, reasoner = (chat_model(profile, role, server.url) for role in ("primary", "reasoner"))
        retriever = Retriever(Index.open(profile.index, Embedder(profile.embedding_path)))
        assistant = Assistant(profile, primary, reasoner, retriever)
        original = Original(profile, server.url, [collection], profile.home / "index-original")

        def answer(question: dict, mode: str) -> dict:
            if mode == "original":
                return original.ask(question["question"])
            return assistant.answer(question, mode)

        settings = {"profile": profile.name, "k": profile.k, "chunk_size": profile.chunk_size}
        rows = evaluation.run(asked, modes, answer, out, settings, lambda error: engine.revive(server, profile))
        result = evaluation.summarize(asked, rows)
        result["retrieval"] = evaluation.retrieval(asked, retriever.search, profile.k)
    evaluation.plot(result, out)
    return {"stand_in_reasoner": profile.stand_in, "split": split, **result}


if __name__ == "__main__":
    main()
