"""Data for a lean model: synthetic questions over documents, and a teacher's reasoning over what is really retrieved.

After Chan et al., Retrieval-Augmented Reasoning with Lean Language Models (arXiv 2508.11386). Each
stage appends a row of JSON for every try, accepted or with the reason why it was `rejected`, so that a
stopped run goes on where it was and what was thrown away can be counted. The templates of the
questions are files beside this one.

Not known here: which documents are for training; hand in those only.
"""

import json
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kit import evaluation
from kit.config import KitError
from kit.corpus import Document, title
from kit.evidence import find_quote
from kit.llm import ChatModel, ContextOverflow
from kit.messages import object_schema, read_json
from kit.reasoner import ANSWER, THINK, VERDICT, Reasoner, Verdict, prompt, turn
from kit.retriever import Hit, Retriever

KINDS = ("plain", "hesitant", "misleading", "comparison", "out_of_scope")
TEMPLATES = Path(__file__).parent / "templates"
EXCERPT = 2500  # characters of a document that the model is shown
LONGEST = {"question": 300, "reply": 80, "evidence": 250}  # characters
ALIKE = 0.9  # cosine similarity from which two questions count as the same
TRIES_A_QUESTION = 5  # on average, before a teacher is given up
RIGHT = 0.6  # token F1 with the gold answer from which a trace is right
NAMED = 0.4  # the same where the gold answer stands in it word for word
Embed = Callable[[list[str]], np.ndarray]  # n texts into unit vectors of shape (n, d)

_TEXT = {key: {"type": "string", "maxLength": length} for key, length in LONGEST.items()}
# The evidence is written first and the answer last, in the alphabet's order as well as in the schema's.
SCHEMA = object_schema(
    evidence={"type": "array", "maxItems": 2, "items": _TEXT["evidence"]},
    question=_TEXT["question"],
    reply=_TEXT["reply"],
)


def questions(
    documents: Sequence[Document],
    model: ChatModel,
    embed: Embed,
    out: str | Path,
    count: int,
    known: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    templates: Path = TEMPLATES,
) -> dict:
    """Append questions about `documents`, whole texts, to `out` until `count` are accepted; returns the counts.

    A question is not accepted where its evidence does not stand in the document, where the evidence
    does not hold its answer, and where it is much like another one or one of `known`, the questions
    of a test. Accepted rows are rows of a question file. Raises `KitError` for a model that gives
    too few, for no documents, and what `model` raises.
    """
    if not documents:
        raise KitError("There is no document to ask about; give files that hold text.")
    texts = {kind: (templates / f"{kind}.txt").read_text(encoding="utf-8") for kind in kinds}
    personas = tomllib.loads((templates / "personas.toml").read_text(encoding="utf-8"))["personas"]
    near = embed([f"{title(d.source)}\n{d.text[:EXCERPT]}" for d in documents])
    rows = _earlier(out, "rejected")
    kept = [row for row in rows if not row["rejected"]]
    if len(apart(kept, known, embed)) < len(kept):
        raise KitError(f"{out} holds questions that are much like one to keep away from; use another --out.")
    asked = [*known, *(row["question"] for row in kept)]
    vectors, accepted = list(embed(asked)) if asked else [], len(kept)
    with evaluation.appending(out, "questions", count, accepted) as (write, bar):
        for number in range(len(rows), TRIES_A_QUESTION * count):
            if accepted >= count:
                break
            lap, place = divmod(number, len(kinds))  # all kinds about one document, which is then read only once
            kind, shown = kinds[place], _drawn(documents, near, 2 if kinds[place] == "comparison" else 1, lap)
            row = _row(number, kind, _said(model, texts[kind], shown, random.Random(number).choice(personas)), shown)
            row["rejected"] = _fault(row, shown, texts[kind])
            if not row["rejected"]:
                vector = embed([row["question"]])[0]
                row["rejected"] = "alike" if any(float(vector @ other) >= ALIKE for other in vectors) else ""
            rows.append(row)
            write(row)
            if not row["rejected"]:
                accepted += 1
                vectors.append(vector)
                bar.update()
    if accepted < count:
        raise KitError(
            f"{model.model_id} gave {accepted} usable questions in {TRIES_A_QUESTION * count} tries, not {count}; "
            f"see why in {out}, and use a stronger model, more documents, or a smaller --count."
        )
    return _counts(rows)


def traces(
    asked: Sequence[dict],
    retriever: Retriever,
    teacher: Reasoner,
    k: int,
    out: str | Path,
    tries: int = 2,
) -> dict:
    """Append what `teacher` makes of the `k` passages that are retrieved for each question; returns the counts.

    A trace is accepted where its answer is right against the gold and supported by a passage, or, for
    a question without an answer, where the teacher finds none; and where its thoughts ended within
    their budget. Otherwise it is tried again with another seed, `tries` times in all. Raises `KitError`
    where nothing is asked, and what the teacher raises; only a question that does not fit the window is
    rejected for it.
    """
    if not asked:
        raise KitError("There is no question to reason about; give a file that has some, or another --split.")
    rows = _earlier(out, "rejected", "hits", "thinking")
    done = Counter(_key(row) for row in rows)
    finished = {_key(row) for row in rows if not row["rejected"]} | {key for key, n in done.items() if n >= tries}
    with evaluation.appending(out, "traces", len(asked), sum(_key(row) in finished for row in asked)) as (write, bar):
        mixed = random.Random(0).sample(asked, len(asked))  # a run that is stopped has seen all kinds
        for question in (question for question in mixed if _key(question) not in finished):
            for number in range(done[_key(question)], tries):
                row = _trace(question, retriever.search(question["question"], k), teacher, number)
                rows.append(row)
                write(row)
                if not row["rejected"]:
                    break
            bar.update()
    return _counts(rows)


def _earlier(out: str | Path, *keys: str) -> list[dict]:
    """The rows of an earlier run, all of which have `keys`."""
    rows = evaluation.read_rows(out)
    if not all(set(keys) <= row.keys() for row in rows):
        raise KitError(f"{out} holds rows that this command has not written; use another --out.")
    return rows


def apart(rows: Sequence[dict], known: Sequence[str], embed: Embed) -> list[dict]:
    """The `rows` whose question is not much like one of `known`, the questions of a test: the others would leak."""
    if not (rows and known):
        return list(rows)
    nearest = (embed([row["question"] for row in rows]) @ embed(list(known)).T).max(axis=1)
    return [row for row, similarity in zip(rows, nearest, strict=True) if similarity < ALIKE]


def training_row(trace: dict) -> dict:
    """`{prompt, completion}`, both lists of chat messages: what the reasoner is asked, and all that it says.

    The completion holds thoughts and answer, the request for a verdict, and the verdict. All that is not the
    teacher's own words comes from `kit.reasoner`, so training and answering cannot drift apart.
    """
    messages = prompt(trace["question"], [Hit(**hit) for hit in trace["hits"]], (), THINK)
    quotes = [citation["quote"] for citation in trace["citations"]]
    verdict = {"words": quotes} if trace["answer"] else {"search": trace["better_query"], "words": []}
    completion = [
        turn(trace["thinking"], f'{ANSWER}{trace["answer"]}"', native=False),
        {"role": "user", "content": VERDICT},
        {"role": "assistant", "content": json.dumps(verdict, ensure_ascii=False)},
    ]
    return {"prompt": messages, "completion": completion}


def _drawn(documents: Sequence[Document], near: np.ndarray, count: int, lap: int) -> list[Document]:
    """The document of this lap, and the one most like it where two are wanted; each has a lap before one has two."""
    order = random.Random(lap // len(documents)).sample(range(len(documents)), len(documents))
    first = order[lap % len(documents)]
    order = np.argsort(-near @ near[first])
    return [documents[i] for i in [first, *(int(i) for i in order if i != first)][:count]]


def _said(model: ChatModel, template: str, shown: Sequence[Document], persona: str) -> dict:
    texts = "\n\n".join(f"[{title(d.source)}]\n{d.text[:EXCERPT]}" for d in shown)
    ask = template.format(documents=texts, persona=persona)
    return read_json(model.complete([{"role": "user", "content": ask}], schema=SCHEMA).text)


def _row(number: int, kind: str, said: dict, shown: Sequence[Document]) -> dict:
    answerable = kind != "out_of_scope"
    return {
        "id": f"{kind}-{number:04d}",
        "question": str(said.get("question", "")).strip(),
        "answer": str(said.get("reply", "")).strip().strip('."') if answerable else "",
        "aliases": [],
        "sources": [{"source": document.source} for document in shown] if answerable else [],
        "type": kind,
        "answerable": answerable,
        "evidence": [text for text in said.get("evidence", []) if isinstance(text, str)] if answerable else [],
    }


def _fault(row: dict, shown: Sequence[Document], template: str) -> str:
    """Why a question cannot be used, "" where it can."""
    if find_quote(template, row["question"].rstrip("?")):
        return "repeats the template"
    if len(row["question"]) < 15 or "?" not in row["question"]:
        return "no question"
    if re.search(r"\b(this|the) (document|passage|text|page)\b", row["question"], re.I):
        return "speaks of the document"
    if not row["answerable"]:
        return ""
    if not row["answer"]:
        return "no answer"
    if len(row["evidence"]) < len(shown):
        return "no evidence"
    if not all(any(find_quote(d.text, text) for d in shown) for text in row["evidence"]):
        return "evidence is not in the document"
    if row["type"] == "comparison":
        names = [title(d.source).casefold() for d in shown]
        return "" if any(row["answer"].casefold() in name for name in names) else "answer is neither of the two"
    if not any(find_quote(text, row["answer"]) for text in row["evidence"]):
        return "answer is not in the evidence"
    return "answer is in the question" if find_quote(row["question"], row["answer"]) else ""


def _key(row: dict) -> tuple[str, str]:
    """What a question is known by; files that `questions` wrote have the same ids."""
    return row["id"], row["question"]


def _trace(question: dict, hits: Sequence[Hit], teacher: Reasoner, number: int) -> dict:
    teacher.model.seed = number
    fault = ""
    try:
        verdict = teacher.judge(question["question"], hits)
    except ContextOverflow:  # the other questions are still to be asked
        verdict, fault = Verdict(), "does not fit the window"
    row = {key: question[key] for key in ("id", "question", "type", "answerable")}
    row |= {"gold": question["answer"], "try": number, "thinking": verdict.thinking, "answer": verdict.answer}
    row |= {"better_query": verdict.better_query}
    row |= {"hits": [asdict(hit) for hit in hits], "citations": [asdict(c) for c in verdict.citations]}
    return row | {"rejected": fault or _wrong(question, row, verdict.sufficient)}


def _wrong(question: dict, row: dict, sufficient: bool) -> str:
    """Why a trace cannot be used, "" where it can."""
    if not row["thinking"].rstrip().endswith((".", "!", "?", '"', "”")):
        return "thoughts are cut off"
    if not question["answerable"]:
        return "answers what the documents do not hold" if sufficient else ""
    if not sufficient:
        return "no supported answer"
    shared = evaluation.score(question, {"answer": row["answer"], "answered": True, "sources": []})["f1"]
    named = find_quote(row["answer"], question["answer"])  # "bus line 263" is right where "263" is the gold answer
    return "" if shared >= (NAMED if named else RIGHT) else "wrong"


def _counts(rows: Sequence[dict]) -> dict:
    """How many rows were accepted, by type, and why the others were not."""
    return {
        "accepted": sum(not row["rejected"] for row in rows),
        "by_type": dict(Counter(row["type"] for row in rows if not row["rejected"])),
        "rejected": dict(Counter(row["rejected"] for row in rows if row["rejected"])),
    }
