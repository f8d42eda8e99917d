"""How long one waits, in a warm process: for the first token, for the answer, and for whom.

    python benchmarks/latency.py                   10 dev questions of data/ in the four modes of `kit ask`

`first_token_seconds` is when the first token that a person could watch arrives, thoughts included;
`overhead_share` is what is left of the time without the engine's and the search's. Medians. Rows are
appended to benchmarks/results/latency/, so a stopped run goes on. Prints one JSON object.
"""

import argparse
import json
import statistics
import time

from machine import machine
from quality import RESULTS, overhead_share, questions, warm_assistant

from kit import evaluation
from kit.agent import MODES
from kit.config import load_profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=10, help="the first N questions")
    asked = [row for row in questions("dev", None) if row["answerable"]][: parser.parse_args().limit]
    profile = load_profile()
    with warm_assistant(profile) as (assistant, _):
        first: list[float] = []
        for model in (assistant.primary, assistant.reasoner.model):
            model.on_text = lambda kind, piece: first.append(time.perf_counter())

        def answer(question: dict, mode: str) -> dict:
            first.clear()
            started = time.perf_counter()
            found = assistant.answer(question, mode)
            return found | {"first_token_seconds": first[0] - started}

        settings = {"profile": profile.name, "k": profile.k}
        rows = evaluation.run(asked, MODES, answer, RESULTS / "latency", settings)
    figures = {mode: summary([row for row in rows if row["mode"] == mode and not row["error"]]) for mode in MODES}
    print(json.dumps({"machine": machine(), "stand_in_reasoner": profile.stand_in, **figures}, indent=2))


def summary(rows: list[dict]) -> dict:
    """Medians over `rows`, seconds unless they say otherwise."""
    columns = {
        "first_token_seconds": [row["first_token_seconds"] for row in rows],
        "seconds": [row["seconds"] for row in rows],
        "engine_seconds": [row["usage"]["engine_seconds"] for row in rows],
        "search_seconds": [row["usage"]["search_seconds"] for row in rows],
        "overhead_share": [overhead_share(row) for row in rows],
        "prompt_tokens": [row["usage"]["prompt_tokens"] for row in rows],
        "output_tokens": [row["usage"]["output_tokens"] for row in rows],
    }
    return {"n": len(rows), **{name: round(statistics.median(values), 4) for name, values in columns.items()}}


if __name__ == "__main__":
    main()
