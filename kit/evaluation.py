"""Measure answers and retrieval: rows in, figures out, with intervals, paired tests and plots.

It is handed callables that answer, search and recover, so it measures any system, not only this
one. A row for each question and mode is appended to `rows.jsonl` at once: a run that was stopped
goes on where it was. What is measured by a library is left to it: ir-measures, torchmetrics (the
SQuAD script) and scipy.

Not known here: models, indexes, and whether an answer that is worded differently means the same.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import from_json
from tqdm import tqdm

from kit.config import KitError, replace_text

ROWS, SETTINGS = "rows.jsonl", "run.json"
RESAMPLES = 9999
DEAD_SECONDS = 600.0  # how long a run waits for an engine to come back

Text = Annotated[str, StringConstraints(pattern=r"\S")]
Answering = Callable[[dict, str], dict]  # (question, mode) -> what `kit ask --json` prints


class Place(BaseModel):
    """Where an answer stands: a source, and of a source with pages the page, which counts from 1."""

    model_config = ConfigDict(extra="allow")
    source: Text
    page: int | None = Field(None, ge=1)


class Question(BaseModel):
    """A line of a question file. A number does for a text ("id": 7), and what is null is as if it were missing."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)
    id: Text
    question: Text
    answer: str
    aliases: list[str] = []
    sources: list[Place] = []
    type: str = "untyped"
    answerable: bool

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, row):
        if not isinstance(row, dict):
            return row
        row = {key: value for key, value in row.items() if value is not None}
        if row.get("answerable") is False:
            row.setdefault("answer", "")
        return {"answerable": bool(str(row.get("answer", "")).strip()), **row}


def read_questions(path: str | Path) -> tuple[list[dict], list[dict]]:
    """The questions of a .jsonl file, and a `{line, error}` for each line that is left out.

    A question is `{"id", "question", "answer", "aliases", "sources", "type", "answerable"}`, of which
    `aliases`, `sources`, `type` and `answerable` (true unless the answer is empty) may be missing. Raises
    `KitError` for a file that cannot be read or holds no question, and for an id that comes twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # a text may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"The question file {path} cannot be read ({error}); give a .jsonl file in UTF-8.") from error
    questions: dict[str, dict] = {}
    bad: list[dict] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = Question.model_validate(from_json(line, allow_inf_nan=False)).model_dump()
        except ValueError as error:
            bad.append({"line": number, "error": f"Line {number} of {path} is left out: {_fault(error)}."})
            continue
        if question["id"] in questions:
            raise KitError(f"The id {question['id']!r} in line {number} of {path} comes twice; ids must be unique.")
        questions[question["id"]] = question
    if not questions:
        form = 'each line is an object with "id", "question" and "answer"'
        raise KitError(" ".join([f"There is no question in {path}; {form}.", *(line["error"] for line in bad[:1])]))
    return list(questions.values()), bad


def _fault(error: ValueError) -> str:
    """What is wrong with a line, in a few words."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if not field:
        return "it is no JSON object"
    if first["type"] in ("missing", "string_pattern_mismatch"):
        return f'it has no text under "{field}"'
    return f'"{field}" is {str(first["input"])[:60]!r}, and {first["msg"][0].lower()}{first["msg"][1:]}'


def run(
    questions: Sequence[dict],
    modes: Sequence[str],
    answer: Answering,
    out: str | Path,
    settings: dict,
    recover: Callable[[KitError], bool] = lambda error: False,
) -> list[dict]:
    """Ask every question in every mode, and return a row for each, those of an earlier run included.

    The modes of a question come one after the other, so that a machine whose speed drifts treats
    them alike. `settings` says what is measured: rows of other settings in `out` are refused. When
    `answer` raises a `KitError`, `recover` is asked to mend the cause; where it returns False the
    row keeps the error and counts as a wrong answer, until a later run over the same `out` asks again.
    """
    out = Path(out)
    _same_settings(out, settings)
    known = {_key(row): row for row in read_rows(out / ROWS) if not row["error"]}
    wanted = [(question, _unanswered(question, mode)) for question in questions for mode in modes]
    todo = [(question, row) for question, row in wanted if _key(row) not in known]
    with appending(out / ROWS, "", len(wanted), len(wanted) - len(todo)) as (write, bar):
        for question, row in todo:
            known[_key(row)] = done = row | _answered(question, row["mode"], answer, recover)
            write(done)
            bar.update()
    return [known[_key(row)] for _, row in wanted]


def _unanswered(question: dict, mode: str) -> dict:
    """A row before its answer; mode `gold` is given the sources, so with others it is another row."""
    given = {"given": question["sources"]} if mode == "gold" else {}
    return {"id": question["id"], "question": question["question"], "mode": mode, **given}


def _key(row: dict) -> tuple:
    return row["id"], row["question"], row["mode"], json.dumps(row.get("given"))


def read_rows(path: str | Path) -> list[dict]:
    """The rows that an earlier run wrote to their end, without the half line of a killed one.

    Raises `KitError` for a whole line that is no JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    with path.open("rb") as lines:  # as bytes, where nothing but a line feed ends a line
        for number, line in enumerate(lines, 1):
            try:
                rows += [_object(line)] if line.strip() else []
            except ValueError as error:
                if line.endswith(b"\n"):
                    raise KitError(f"Line {number} of {path} is no row ({error}); mend it, or take it out.") from error
    return rows


def _object(line: bytes) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


@contextmanager
def appending(path: str | Path, name: str, total: int, done: int) -> Iterator[tuple]:
    """What appends a row to `path`, at once, and a progress bar with the time left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(path)
    bar = tqdm(total=total, initial=done, desc=name, disable=None)
    with path.open("a", encoding="utf-8") as file, bar:

        def write(row: dict) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        yield write, bar


def _end_last_line(path: Path) -> None:
    """End the last line where it is whole, and cut it off where it is the half line of a killed run."""
    text = path.read_bytes() if path.exists() else b""
    start = text.rfind(b"\n") + 1
    if not text[start:].strip():
        return
    try:
        json.loads(text[start:])
    except ValueError:
        os.truncate(path, start)
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _same_settings(out: Path, settings: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    record = out / SETTINGS
    then = json.loads(record.read_text(encoding="utf-8")) if record.exists() else settings
    if other := [key for key in settings if then.get(key) != settings[key]]:
        raise KitError(
            f"{out} holds rows of a run with another {', '.join(other)}; use another --out folder, or delete this one."
        )
    if not record.exists():
        replace_text(record, json.dumps(settings, indent=1, ensure_ascii=False))


def _answered(question: dict, mode: str, answer: Answering, recover: Callable) -> dict:
    give_up = time.monotonic() + DEAD_SECONDS
    while True:
        try:
            return {**answer(question, mode), "error": ""}
        except KitError as error:
            if time.monotonic() > give_up or not recover(error):
                nothing = {"answer": "", "answered": False, "sources": [], "usage": {}, "seconds": 0.0}
                return nothing | {"error": str(error)}


def score(question: dict, row: dict) -> dict:
    """Exact match and token F1 of one answer, its citation precision and recall, and whether it declined.

    Exact match and F1 are those of the SQuAD script (Rajpurkar et al., arXiv 1606.05250), the best
    over the gold answer and its aliases; as in HotpotQA's (Yang et al., arXiv 1809.09600), yes and no
    earn F1 only when they match. A declined question scores 0. Citation precision is the share of
    cited places that are gold, None where nothing is cited; recall is the share of gold places that are
    cited, None where the question was declined; both are None without gold.
    """
    from torchmetrics.functional.text import squad

    said = row["answer"] if row["answered"] else ""
    gold = [question["answer"], *question["aliases"]]
    target = {"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": "1"}
    measured = squad([{"prediction_text": said, "id": "1"}], [target])
    em, f1 = (measured[key].item() / 100 for key in ("exact_match", "f1"))
    words = {text.strip(" .").lower() for text in (said, question["answer"])}
    if not row["answered"]:
        em = f1 = 0.0  # also where the gold answer is "A", of which the script leaves nothing
    elif words & {"yes", "no"} and not em:
        f1 = 0.0
    places = _places(question)
    cited = {_gold_place(s["source"], s.get("page"), places) for s in row["sources"]}
    return {
        "em": em,
        "f1": f1,
        "declined": not (row["answered"] or row.get("error")),
        "citation_precision": len(cited & set(places)) / len(cited) if places and cited else None,
        "citation_recall": len(cited & set(places)) / len(set(places)) if places and row["answered"] else None,
    }


def _places(question: dict) -> list[tuple]:
    return [(s["source"], s.get("page")) for s in question["sources"]]


def _gold_place(source: str, page: int | None, gold: Iterable[tuple]) -> tuple:
    """The place as the gold names it: a gold source without a page means all of its pages."""
    return (source, None) if (source, None) in gold else (source, page)


def summarize(questions: Sequence[dict], rows: Sequence[dict]) -> dict:
    """`{modes: {mode: figures}, paired: [...]}` over rows of `run`.

    Exact match and F1 are means over the answerable questions, with 95% intervals by bootstrap (Efron,
    BCa); citation precision is the mean over those of them that cite something, recall over those that
    were answered; abstention is over all: of the declined, the share that is unanswerable
    (precision), and of the unanswerable, the share that was declined (recall). Calls, tokens and
    engine seconds are medians. `by_type` repeats n, em and f1 for each type of question. `paired`
    compares each two modes, over all answerable questions and over each type.
    """
    asked = {question["id"]: question for question in questions}
    table: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["id"] in asked:
            table.setdefault(row["mode"], {})[row["id"]] = {**row, **score(asked[row["id"]], row)}
    rng = np.random.default_rng(0)
    return {
        "modes": {mode: _figures(asked, scored, rng) for mode, scored in table.items()},
        "paired": _paired(asked, table, rng),
    }


def _figures(asked: dict, scored: dict[str, dict], rng) -> dict:
    known = [row for i, row in scored.items() if asked[i]["answerable"]]
    absent = [row for i, row in scored.items() if not asked[i]["answerable"]]
    figures: dict = {
        "n": len(scored),
        "answerable": len(known),
        "errors": sum(bool(r["error"]) for r in scored.values()),
    }
    for measure in ("em", "f1"):
        values = [row[measure] for row in known]
        figures[measure], figures[f"{measure}_ci"] = _mean(values), interval(values, rng)
    for measure in ("citation_precision", "citation_recall"):
        figures[measure] = _mean([row[measure] for row in known if row[measure] is not None])
    declined = [row for row in (*known, *absent) if row["declined"]]
    figures["abstention_precision"] = _mean([not asked[row["id"]]["answerable"] for row in declined])
    figures["abstention_recall"] = _mean([row["declined"] for row in absent])
    figures["answerable_declined"] = _mean([row["declined"] for row in known])
    for key in ("calls", "prompt_tokens", "output_tokens", "engine_seconds"):
        figures[key] = _quantile([row["usage"][key] for row in scored.values() if row["usage"]], 0.5)
    seconds = [row["seconds"] for row in scored.values() if not row["error"]]
    figures |= {"seconds_p50": _quantile(seconds, 0.5), "seconds_p90": _quantile(seconds, 0.9)}
    figures["by_type"] = {
        kind: {"n": len(of), "em": _mean([r["em"] for r in of]), "f1": _mean([r["f1"] for r in of])}
        for kind, ids in _by_type(asked, (row["id"] for row in known)).items()
        for of in [[scored[i] for i in ids]]
    }
    return figures


def _by_type(asked: dict, ids: Iterable[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for i in ids:
        kinds.setdefault(asked[i]["type"], []).append(i)
    return kinds


def interval(values: Sequence[float], rng=None) -> list[float] | None:
    """The 95% bootstrap interval (BCa) of the mean of `values`; None for fewer than two values."""
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    if len(set(values)) == 1:  # nothing to resample
        return [float(values[0])] * 2
    found = bootstrap((values,), np.mean, n_resamples=RESAMPLES, rng=rng).confidence_interval
    return [round(float(found.low), 4), round(float(found.high), 4)]


def _paired(asked: dict, table: dict[str, dict], rng) -> list[dict]:
    found = []
    for a, b in itertools.combinations(table, 2):
        both = [i for i in table[a] if i in table[b] and asked[i]["answerable"]]
        kinds = _by_type(asked, both)
        for kind, ids in [("all", both), *(kinds.items() if len(kinds) > 1 else ())]:
            for measure in ("em", "f1"):
                values = [np.array([table[mode][i][measure] for i in ids]) for mode in (a, b)]
                found.append({"a": a, "b": b, "measure": measure, "type": kind, **compare(*values, measure, rng)})
    return found


def compare(a: np.ndarray, b: np.ndarray, measure: str = "f1", rng=None) -> dict:
    """`{test, delta, ci, p}` for the difference b − a of two measurements of the same n questions.

    For exact match McNemar's test in its exact form (a binomial test of the questions that only one
    of them got right), for F1 a paired randomization test; both are two-sided.
    """
    from scipy.stats import binomtest, permutation_test

    difference = b - a
    only_a, only_b = int((difference < 0).sum()), int((difference > 0).sum())
    if only_a + only_b == 0 or len(difference) < 2:  # with one pair, both signs are as extreme
        p = 1.0
    elif measure == "em":
        p = binomtest(only_b, only_a + only_b).pvalue
    else:

        def gain(x, y, axis):
            return np.mean(y - x, axis=axis)

        paired = {"permutation_type": "samples", "vectorized": True, "n_resamples": RESAMPLES, "rng": rng}
        p = permutation_test((a, b), gain, **paired).pvalue
    test = "mcnemar" if measure == "em" else "randomization"
    delta = float(difference.mean()) if len(difference) else 0.0
    return {"test": test, "delta": round(delta, 4), "ci": interval(list(difference), rng), "p": float(f"{p:.4g}")}


def retrieval(questions: Iterable[dict], search: Callable[[str, int], Sequence], k: int) -> dict:
    """`{"hit@k", "recall@k", "mrr", "ndcg"}` of `search(query, k)` over the questions that have gold sources.

    A place counts once, at its best rank; `search` returns objects with `source` and `page`. hit@k asks
    for one gold place among the k passages, recall@k for the share of them. None where no question has any.
    """
    import ir_measures
    from ir_measures import RR, R, Success, nDCG

    qrels, ranking = {}, {}
    for question in questions:
        places = _places(question)
        if places and question["answerable"]:
            qrels[question["id"]] = {json.dumps(place): 1 for place in places}
            hits = search(question["question"], k)
            found = dict.fromkeys(json.dumps(_gold_place(hit.source, hit.page, places)) for hit in hits)
            ranking[question["id"]] = {place: float(len(found) - n) for n, place in enumerate(found)}
    names = {Success @ k: f"hit@{k}", R @ k: f"recall@{k}", RR @ k: "mrr", nDCG @ k: "ndcg"}
    if not qrels:
        return dict.fromkeys(names.values())
    measured = ir_measures.calc_aggregate(list(names), qrels, ranking)
    return {name: round(measured[measure], 4) for measure, name in names.items()}


def plot(summary: dict, out: str | Path) -> list[Path]:
    """Write `answers.png` (exact match and F1 with intervals) and `cost.png` (seconds and tokens) into `out`."""
    from matplotlib.figure import Figure  # and no pyplot, whose state belongs to the notebook that calls

    modes = summary["modes"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for offset, (measure, label) in enumerate((("em", "exact match"), ("f1", "token F1"))):
        heights = [modes[mode][measure] or 0 for mode in modes]
        ends = [modes[mode][f"{measure}_ci"] or (height, height) for mode, height in zip(modes, heights, strict=True)]
        errors = [
            [max(0, h - lo) for h, (lo, _) in zip(heights, ends, strict=True)],
            [max(0, hi - h) for h, (_, hi) in zip(heights, ends, strict=True)],
        ]
        axis.bar(np.arange(len(modes)) + 0.4 * offset - 0.2, heights, 0.38, yerr=errors, capsize=3, label=label)
    axis.set(xticks=range(len(modes)), xticklabels=list(modes), ylim=(0, 1), ylabel="share of answerable questions")
    axis.legend(loc="upper left")
    figure.savefig(Path(out) / "answers.png", dpi=150)
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].barh(list(modes), [modes[mode]["seconds_p50"] or 0 for mode in modes])
    axes[0].set(xlabel="seconds for a question (median)")
    left = np.zeros(len(modes))
    for key, label in (("prompt_tokens", "read"), ("output_tokens", "written")):
        values = np.array([modes[mode][key] or 0 for mode in modes], dtype=float)
        axes[1].barh(list(modes), values, left=left, label=label)
        left += values
    axes[1].set(xlabel="tokens for a question (median)", yticks=[])
    axes[1].legend()
    for axis in axes:
        axis.invert_yaxis()
    figure.savefig(Path(out) / "cost.png", dpi=150)
    return [Path(out) / "answers.png", Path(out) / "cost.png"]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def _quantile(values: Sequence[float], q: float) -> float | None:
    return round(float(np.quantile(values, q)), 3) if len(values) else None
