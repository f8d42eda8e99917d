"""How long a search takes, over 1,000, 10,000 and 100,000 chunks, beside bare chromadb.

    python benchmarks/search.py                    needs the indexes that ingest.py leaves

The queries are the `test` questions of data/. In turn for each: chromadb alone (embed the question,
`collection.query` for k), the kit by meaning, and the kit by meaning and words. p50 and p95 in
milliseconds, the embedding of the query in all of them. Prints one JSON object.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import chromadb
import numpy as np
from ingest import RESULTS
from machine import machine

from kit import evaluation
from kit.config import load_profile
from kit.index import COLLECTION, Embedder, Index
from kit.retriever import Retriever

DATA = Path(__file__).parent.parent / "data"
SIZES = (1_000, 10_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200, help="only the first N questions")
    limit = parser.parse_args().limit
    rows, _ = evaluation.read_questions(DATA / "questions.jsonl")
    queries = [row["question"] for row in rows if row["split"] == "test"][:limit]
    profile = load_profile()
    embedder = Embedder(profile.embedding_path)
    if missing := [str(size) for size in SIZES if not (RESULTS / f"{size}.json").exists()]:
        sys.exit(f"There are not all indexes yet; run `python benchmarks/ingest.py --parts {','.join(missing)}`.")
    found = {str(size): measured(RESULTS / f"index-{size}", embedder, queries, profile.k) for size in SIZES}
    print(json.dumps({"machine": machine(), "queries": len(queries), "k": profile.k, **found}, indent=2))


def measured(folder: Path, embedder: Embedder, queries: list[str], k: int) -> dict:
    """Milliseconds of each way to search, and the ratios of their p95 to that of bare chromadb."""
    bare_folder = folder.with_name(f"{folder.name}-bare")  # two clients over one folder are not to be
    shutil.rmtree(bare_folder, ignore_errors=True)
    shutil.copytree(folder, bare_folder)
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    bare = chromadb.PersistentClient(str(bare_folder), settings=settings).get_collection(
        COLLECTION, embedding_function=None
    )
    model = embedder.load()
    with Index.open(folder, embedder) as index:
        ways = {
            "chromadb": lambda query: bare.query(query_embeddings=model.encode([query]), n_results=k),
            "kit_dense": lambda query: Retriever(index, hybrid=False).search(query, k),
            "kit_hybrid": lambda query: Retriever(index).search(query, k),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way("warm")
        for query in queries:
            for name, way in ways.items():
                started = time.perf_counter()
                way(query)
                taken[name].append(1000 * (time.perf_counter() - started))
    shutil.rmtree(bare_folder)
    found = {name: [round(float(np.percentile(ms, p)), 1) for p in (50, 95)] for name, ms in taken.items()}
    return {
        name: {"p50": p50, "p95": p95, "p95_to_chromadb": round(p95 / found["chromadb"][1], 2)}
        for name, (p50, p95) in found.items()
    }


if __name__ == "__main__":
    main()
