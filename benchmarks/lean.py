"""Base, lean and teacher over unseen questions about unseen documents: what training brought, and what it costs.

    python benchmarks/lean.py --lean lean/lean.toml      what `kit finetune` wrote; the test questions of data/huts

A way to answer is written WHO/HOW. WHO is base (the small model before training), lean, or teacher. HOW is
k1, k3, k5, k10 (so many passages, thoughts of at most 80 tokens), t0 to t512 (five passages, thoughts forced to so many
tokens), closed (no passages), or judge (the reasoner of the kit, as the agent calls it). One factor changes at a time.
Only the seconds of a judge mean something: other ways may find their prompt in the engine's memory. Rows are appended
to benchmarks/results/lean/ as they are made. Prints one JSON object.
"""

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from machine import machine
from quality import questions

from kit import engine, evaluation, finetune, forcing, models
from kit.config import Profile, load_profile
from kit.index import Embedder, Index
from kit.llm import chat_model
from kit.reasoner import ANSWER, THINK, Reasoner, prompt
from kit.retriever import Retriever

ROOT = Path(__file__).parent.parent
HUTS = ROOT / "data" / "huts"
RESULTS = Path(__file__).parent / "results" / "lean"
K, BUDGET, EXTENSIONS = 5, 80, 2
MAIN = ("lean/judge", "teacher/judge", "base/judge", "base/k5", "lean/k5", "teacher/k5")
FACTORS = (
    *(f"{who}/closed" for who in ("base", "lean", "teacher")),
    *(f"lean/k{k}" for k in (1, 3, 10)),
    *(f"lean/t{budget}" for budget in (0, 64, 128, 256, 512)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lean", required=True, help="the profile file that `kit finetune` wrote")
    parser.add_argument("--questions", type=int, default=120, help="for the comparison of the three (default: 120)")
    parser.add_argument("--each", type=int, default=50, help="for each other factor (default: 50, 0 for none)")
    parser.add_argument("--modes", default=",".join(MAIN), help=f"of the comparison (default: {','.join(MAIN)})")
    args = parser.parse_args()
    asked = questions("test", None, HUTS / "questions.jsonl")[: args.questions]
    with ExitStack() as stack:
        answer, settings = answering(load_profile(), Path(args.lean), stack)
        rows = evaluation.run(asked, args.modes.split(","), answer, RESULTS, settings)
        if args.each:
            rows += evaluation.run(asked[: args.each], FACTORS, answer, RESULTS, settings)
    result = evaluation.summarize(asked, rows)
    print(json.dumps({"machine": machine(), **settings, **result}, indent=2))


def answering(profile: Profile, lean: Path, stack: ExitStack):
    """What answers a question in a mode, and what was measured with."""
    who = {"base": _base(profile), "lean": load_profile(str(lean)), "teacher": profile}
    folder = profile.home / "index-huts"
    with Index.create(folder, Embedder(profile.embedding_path), profile.chunk_size, profile.chunk_overlap) as index:
        index.ingest([HUTS / "collection"])
    retriever = Retriever(Index.open(folder, Embedder(profile.embedding_path)))
    server = stack.enter_context(engine.running(profile))
    made = {name: models.ensure(one, server.url)[1] for name, one in who.items()}  # the reasoners
    judges = {
        name: Reasoner(chat_model(one, "reasoner", server.url), one.thinking_tokens, one.answer_tokens)
        for name, one in who.items()
    }
    writers = {name: forcing.ollama(server.url, one.model_name("reasoner"), one.num_ctx) for name, one in who.items()}

    def answer(question: dict, mode: str) -> dict:
        name, _, how = mode.partition("/")
        if how == "judge":
            models.effective_context(server.url, who[name].model_name("reasoner"))  # loads it: two of the three fit
        started = time.perf_counter()
        k = 0 if how == "closed" else int(how[1:]) if how.startswith("k") else K
        hits = retriever.search(question["question"], k) if k else []
        if how == "judge":
            said = asdict(judges[name].judge(question["question"], hits))
            text, thinking = said["answer"], said["thinking"]
            sources = [{key: c[key] for key in ("source", "page", "quote")} for c in said["citations"]]
        else:
            messages = prompt(question["question"], hits, (), THINK)
            budget, again = (int(how[1:]), EXTENSIONS) if how.startswith("t") else (BUDGET, 0)
            forced = forcing.force(writers[name], forcing.chatml(messages), ANSWER, budget, again)
            text, thinking, sources = forced.answer, forced.thinking, []
        seconds = round(time.perf_counter() - started, 3)
        return {"answer": text, "answered": bool(text), "sources": sources, "steps": [], "thinking": thinking,
                "state": "answered" if text else "not_found", "usage": {}, "seconds": seconds}  # fmt: skip

    return answer, {"k": K, "budget": BUDGET, **{name: one["digest"] for name, one in made.items()}}


def _base(profile: Profile) -> Profile:
    """The small model before training, with the template that the lean one has."""
    recipe = profile.home / "base.Modelfile"
    recipe.write_text(finetune.MODELFILE.format(weights=finetune.BASE, num_ctx=profile.num_ctx), encoding="utf-8")
    return replace(profile, reasoner=str(recipe))


if __name__ == "__main__":
    main()
