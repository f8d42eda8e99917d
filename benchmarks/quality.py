"""Right answers, tokens and seconds of every way to answer, the original flow among them, side by side.

    python benchmarks/quality.py                           the test questions of data/, all modes
    python benchmarks/quality.py --data data/general       those of another collection
    python benchmarks/quality.py --split dev --modes rag,agentic --limit 20
    python benchmarks/quality.py --report benchmarks/published/quality-test-146.jsonl    figures of earlier rows
    python benchmarks/quality.py --data data --report DATA_ROWS --data data/general --report GENERAL_ROWS    both as one

All modes answer a question one after the other, on the same engine, weights and machine. `rag-forced` and
`gold-forced` are `rag` and `gold` without the way out "not in the documents"; they read what the mode before them
read, so the engine has it already, and their seconds say nothing. Rows are appended to
benchmarks/results/quality-DATA-SPLIT/ as they are made, so a stopped run goes on where it was. Prints one JSON object,
in which questions over one place of the documents are of type `one` and those over several are of type `several`,
and writes the plots beside the rows.
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

from kit import agent, comparison, engine, evaluation, evidence, index, llm, messages, reasoner, retriever, words
from kit.agent import Assistant
from kit.config import Profile, load_profile
from kit.index import Embedder, Index
from kit.llm import chat_model
from kit.retriever import Retriever

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
RESULTS = Path(__file__).parent / "results"
# `closed` between `rag` and `reasoner`, so that the passages of the one are not in the engine's cache for the other.
ALL = ("original", "rag", "rag-forced", "closed", "reasoner", "agentic", "gold", "gold-forced")
FORCED = reasoner.PLAIN.partition(" If ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", help="folder of a questions.jsonl and a collection/")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--modes", default=",".join(ALL), help=f"of {', '.join(ALL)}")
    parser.add_argument("--limit", type=int, help="only the first N questions of each type")
    parser.add_argument("--report", type=Path, action="append", help="rows of an earlier run to make figures of")
    args = parser.parse_args()
    folders = args.data or [DATA]
    asked = [questions(args.split, args.limit, folder / "questions.jsonl") for folder in folders]
    if len(folders) != (len(args.report) if args.report else 1):
        parser.error("give one --data, or one for each --report")
    if args.report:
        for path in args.report:
            if not path.is_file():
                parser.error(f"there is no file {path}; give rows that a run of this script appended")
        rows = [evaluation.read_rows(path) for path in args.report]
        figures = {"rows": [str(path) for path in args.report]} | figures_of(*as_one(folders, asked, rows))
    else:
        figures = {"machine": machine(), **measured(asked[0], args.modes.split(","), args.split, folders[0].resolve())}
    print(json.dumps(figures, indent=2))


def as_one(folders: list[Path], asked: list[list[dict]], rows: list[list[dict]]) -> tuple[list[dict], list[dict]]:
    """Questions and rows of several collections as those of one, in the modes that all were asked in."""
    shared = set.intersection(*({row["mode"] for row in of} for of in rows))

    def named(of: list[list[dict]]) -> list[dict]:
        return [
            {**row, "id": f"{folder.name}/{row['id']}"}
            for folder, part in zip(folders, of, strict=True)
            for row in part
        ]

    return named(asked), [row for row in named(rows) if row["mode"] in shared]


def questions(split: str, limit: int | None, path: Path = DATA / "questions.jsonl") -> list[dict]:
    """The questions of `split`, in turn of each type, so that a run that is stopped has seen all types alike."""
    rows, _ = evaluation.read_questions(path)
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        if row.get("split", split) == split:
            kinds.setdefault(row["type"], []).append(row)
    numbered = [(n / len(kind), row) for kind in kinds.values() for n, row in enumerate(kind[:limit])]
    return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]


def measured(asked: list[dict], modes: list[str], split: str, data: Path = DATA) -> dict:
    """Answer, and return what `kit evaluate` prints, and how cleanly the agentic answers came."""
    profile = load_profile()
    out = RESULTS / f"quality-{data.name}-{split}"
    with warm_assistant(profile, data) as (assistant, server):
        replies = _record(assistant.primary, assistant.reasoner.model)
        if "original" in modes:
            index_of_original = _index_folder(profile, data, "original-")
            original = Original(profile, server.url, [str(data / "collection")], index_of_original)

        def answer(question: dict, mode: str) -> dict:
            if mode == "original":
                found = original.ask(question["question"])
                _warm(assistant)  # /v1 loads the model with other options, and the next mode is not to pay for that
                return found
            if mode.endswith("-forced"):
                return _forced(assistant, question, mode.removesuffix("-forced"))
            replies.clear()
            found = assistant.answer(question, mode)
            return found | _calls(assistant, replies) | _quoted(assistant.retriever, found)

        decisive = (
            "k",
            "chunk_size",
            "chunk_overlap",
            "max_steps",
            "primary_tokens",
            "thinking_tokens",
            "answer_tokens",
        )
        settings = {"profile": profile.name, "kit": _answering(), **{key: getattr(profile, key) for key in decisive}}
        settings["index"] = assistant.retriever.index.fingerprint()
        rows = evaluation.run(asked, modes, answer, out, settings, lambda error: engine.revive(server, profile))
        result = figures_of(asked, rows)
        result["retrieval"] = evaluation.retrieval(asked, assistant.retriever.search, profile.k)
    timed = {mode: figures for mode, figures in result["modes"].items() if not mode.endswith("-forced")}
    evaluation.plot({**result, "modes": timed}, out)
    return {"stand_in_reasoner": profile.stand_in, "split": split, **result}


def figures_of(asked: list[dict], rows: list[dict]) -> dict:
    """What `kit evaluate` prints of `rows`, questions grouped by whether their evidence stands in one place.

    It is over the questions that were asked in every mode; the original flow, which takes long, may lag behind.
    """
    answered = {(row["id"], row["mode"]): row for row in rows}  # the last try of each
    modes = {mode for _, mode in answered} - {"original"}
    done = {row["id"] for row in asked if all((row["id"], mode) in answered for mode in modes)}
    asked = [{**row, "type": "several" if len(row["sources"]) > 1 else "one"} for row in asked if row["id"] in done]
    rows = [row for row in answered.values() if row["id"] in done]
    summary = evaluation.summarize(asked, rows)
    claims = _beside_original(asked, rows) | _beside_plain(summary)
    return {**_cleanness([row for row in rows if row["mode"] == "agentic"]), "claims": claims, **summary}


def _beside_original(asked: list[dict], rows: list[dict]) -> dict:
    """The agentic mode beside the original flow, over the questions that the latter was asked: it takes long."""
    both = {row["id"] for row in rows if row["mode"] == "original"}
    pair = [row for row in rows if row["id"] in both and row["mode"] in ("original", "agentic")]
    modes = evaluation.summarize(asked, pair)["modes"]
    if len(modes) < 2:
        return {}
    ours, theirs = modes["agentic"], modes["original"]
    tokens = [mode["prompt_tokens"] + mode["output_tokens"] for mode in (ours, theirs)]
    return {
        "beside_original": {
            "questions": theirs["n"],
            "right": [ours["em"], theirs["em"]],
            "share_of_seconds": round(ours["seconds_p50"] / theirs["seconds_p50"], 3),
            "share_of_tokens": round(tokens[0] / tokens[1], 3),
        }
    }


def _beside_plain(summary: dict) -> dict:
    """The agentic mode between plain RAG and its ceiling, over the questions whose evidence stands in several places.

    `closed` is the share of the distance from plain RAG to the gold passages (1 is all of it); None where there is
    no distance.
    """
    modes = summary["modes"]
    claims: dict = {}
    for plain, ceiling in (("rag", "gold"), ("rag-forced", "gold-forced")):
        if {plain, ceiling, "agentic"} <= modes.keys():
            claims[f"beside_{plain}"] = {measure: _closed(summary, plain, ceiling, measure) for measure in ("em", "f1")}
    return claims


def _closed(summary: dict, plain: str, ceiling: str, measure: str) -> dict:
    low, here, high = (
        summary["modes"][mode]["by_type"].get("several", {}).get(measure) for mode in (plain, "agentic", ceiling)
    )
    tests = {
        pair["type"]: {key: pair[key] for key in ("delta", "ci", "p")}
        for pair in summary["paired"]
        if (pair["a"], pair["b"], pair["measure"]) == (plain, "agentic", measure)
    }
    closed = round((here - low) / (high - low), 3) if None not in (low, here, high) and high > low else None
    return {plain: low, "agentic": here, ceiling: high, "closed": closed, **tests}


def _forced(assistant: Assistant, question: dict, mode: str) -> dict:
    """The answer of `rag` or `gold` where the prompt leaves no way out."""
    search = assistant.retriever
    gold = mode == "gold"
    hits = search.passages(question["sources"]) if gold else search.search(question["question"], assistant.profile.k)
    asked = reasoner.prompt(question["question"], hits, (), FORCED)
    reply = assistant.primary.complete(asked, max_tokens=assistant.profile.answer_tokens)
    sources = [{"source": hit.source, "page": hit.page, "quote": ""} for hit in hits]
    return {"answer": reply.text.strip(), "answered": True, "sources": sources, "usage": {}, "seconds": 0.0}


def _quoted(search: Retriever, found: dict) -> dict:
    """How many quotes an answer has, and how many of them stand word for word in what the index has of their place."""
    quotes = [source for source in found["sources"] if source["quote"]]
    stand = [
        any(evidence.find_quote(retriever.joined(page), source["quote"]) for page in retriever.pages(hits))
        for source in quotes
        for hits in [search.passages([source])]
    ]
    return {"quotes": len(stand), "quotes_found": sum(stand)}


@contextmanager
def warm_assistant(profile: Profile, data: Path = DATA) -> Iterator[tuple[Assistant, engine.Engine]]:
    """An assistant over an index of its own of `data`/collection, and its engine; all models are loaded."""
    folder, embedder = _index_folder(profile, data), Embedder(profile.embedding_path)
    with Index.create(folder, embedder, profile.chunk_size, profile.chunk_overlap) as made:
        made.ingest([data / "collection"])
    with engine.running(profile) as server:
        models = [chat_model(profile, role, server.url) for role in ("primary", "reasoner")]
        assistant = Assistant(profile, *models, Retriever(Index.open(folder, embedder)))
        _warm(assistant)
        assistant.retriever.search("warm", 1)
        yield assistant, server


def _index_folder(profile: Profile, data: Path, kind: str = "") -> Path:
    """A folder for each path: what another checkout ingested from a folder of this name is no part of it."""
    place = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:8]
    return profile.home / f"index-{kind}{data.name}-{place}"


def _warm(assistant: Assistant) -> None:
    for model in (assistant.primary, assistant.reasoner.model):
        model.complete([{"role": "user", "content": "Hello"}], max_tokens=1)


def _answering() -> str:
    """A sum over the modules that answer, prompts among them: rows of another state of them are not mixed in."""
    modules = (reasoner, comparison, evidence, agent, retriever, index, words, llm, messages)
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
        "quotes": sum(row.get("quotes", 0) for row in done),
        "quotes_found": sum(row.get("quotes_found", 0) for row in done),
        "overhead_share_median": round(statistics.median(shares), 4) if shares else None,
    }


if __name__ == "__main__":
    main()
