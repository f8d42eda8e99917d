"""What is found, before any model is asked: chunk sizes, and search by meaning alone or by meaning and words.

    python benchmarks/retrieval.py                 the dev questions of data/

Each row reads about the same number of characters. `evidence` is the share of the gold evidence of
which more than 70% of the three-word sequences stand in the passages found, `all_evidence` the share of
questions of which all of it does; the rest is what `kit evaluate` prints. Prints one JSON object.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np
from machine import machine

from kit import evaluation
from kit.config import load_profile
from kit.index import Embedder, Index
from kit.retriever import Retriever

DATA = Path(__file__).parent.parent / "data"
SETTINGS = ((200, 30, 14), (300, 40, 10), (400, 60, 7), (600, 80, 5), (1000, 120, 3))  # size, overlap, k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    split = parser.parse_args().split
    rows, _ = evaluation.read_questions(DATA / "questions.jsonl")
    questions = [row for row in rows if row["split"] == split and row["answerable"]]
    embedder = Embedder(load_profile().embedding_path)
    found = []
    for size, overlap, k in SETTINGS:
        with (
            tempfile.TemporaryDirectory() as folder,
            Index.create(folder, embedder, size, overlap) as index,
        ):
            index.ingest([DATA / "collection"])
            for hybrid in (False, True):
                settings = {"chunk_size": size, "chunk_overlap": overlap, "k": k, "hybrid": hybrid}
                found.append({**settings, **measured(questions, Retriever(index, hybrid), k)})
    print(json.dumps({"machine": machine(), "split": split, "questions": len(questions), "rows": found}, indent=2))


def measured(questions: list[dict], retriever: Retriever, k: int) -> dict:
    """Characters read and evidence found (means over the questions), and the measures of the places."""
    characters, shares = [], []
    for question in questions:
        hits = retriever.search(question["question"], k)
        characters.append(sum(len(hit.text) for hit in hits))
        have = set().union(*(sequences(hit.text) for hit in hits))
        wanted = [sequences(evidence["text"]) for evidence in question["evidence"]]
        shares.append([len(want & have) > 0.7 * len(want) for want in wanted])
    return {
        "characters": round(float(np.mean(characters))),
        "evidence": round(float(np.mean([np.mean(share) for share in shares])), 3),
        "all_evidence": round(float(np.mean([all(share) for share in shares])), 3),
        **evaluation.retrieval(questions, retriever.search, k),
    }


def sequences(text: str, n: int = 3) -> set[tuple[str, ...]]:
    """Every `n` words of `text` that stand beside each other."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


if __name__ == "__main__":
    main()
