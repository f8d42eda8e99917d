"""The ingest of notebook 9, at a size that its minutes do not allow: Ray Data into a Chroma server.

    python benchmarks/scale.py                               with one worker, then with two: an hour on 2 cores
    python benchmarks/scale.py --passages 4000 --workers 2

Each number of workers is a run of its own into an empty server, and leaves a row in benchmarks/results/scale.jsonl;
a stopped measurement goes on with the runs that are missing. Prints one JSON object. The passages are those of
ingest.py: sentences of data/ in random order, about 110 characters with their title. `seconds` is from the first
batch embedded to the last one written; what Ray and the workers need to start is apart.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "ANONYMIZED_TELEMETRY": "False"}  # read when these are imported

import chromadb
import numpy as np
import psutil
import ray
from chromadb.config import Settings
from ingest import write_passages
from machine import machine

from kit import evaluation
from kit.config import load_profile
from kit.corpus import Document, split
from kit.index import Embedder

ROWS = Path(__file__).parent / "results" / "scale.jsonl"
ROWS_A_FILE = 2500  # each file is a task of its own
EMBEDDED, WRITTEN = 256, 1000  # passages in a batch for the model, and in one for the server
SEARCHES, K = 200, 10
COSINE = {"hnsw": {"space": "cosine"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    ROWS.parent.mkdir(exist_ok=True)
    rows = evaluation.read_rows(ROWS)
    for workers in args.workers:
        if not any((row["passages"], row["workers"]) == (args.passages, workers) for row in rows):
            rows.append(ingest(args.passages, workers))
            with ROWS.open("a", encoding="utf-8") as out:
                out.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps({"machine": machine(), "runs": rows}, indent=2))


def ingest(passages: int, workers: int) -> dict:
    """One run, from files to a server that answers, and what it took."""
    profile = load_profile()
    with tempfile.TemporaryDirectory() as work:
        folder = shards(Path(work), passages)
        with chroma(Path(work) / "store") as (port, server):
            connect(port).create_collection("passages", embedding_function=None, configuration=COSINE)
            empty, began = server.memory_info().rss, time.time()
            ray.init(num_cpus=workers + 2, include_dashboard=False, log_to_driver=False, logging_level="error")
            ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
            done = pipeline(folder, profile, workers, port).take_all()
            ray.shutdown()
            collection = connect(port).get_collection("passages", embedding_function=None)
            assert collection.count() == passages, "a passage is missing"
            first, last = min(row["began"] for row in done), max(row["ended"] for row in done)
            return {
                "passages": passages,
                "workers": workers,
                "start_seconds": round(first - began, 1),
                "seconds": round(last - first, 1),
                "passages_per_second": round(passages / (last - first), 1),
                "embed_seconds": round(sum(row["embed_seconds"] for row in done), 1),
                "write_seconds": round(sum(row["write_seconds"] for row in done), 1),
                "tokens_per_passage": tokens(folder, profile),
                "worker_mib": round(max(row["worker_mib"] for row in done)),
                "server_mib": round((server.memory_info().rss - empty) / 2**20, 1),
                "disk_mib": round(sum(f.stat().st_size for f in Path(work, "store").rglob("*.*")) / 2**20, 1),
                "dimension": done[0]["dimension"],
                **searched(collection, profile),
            }


def shards(work: Path, passages: int) -> Path:
    """A folder of .jsonl files with so many passages in all."""
    (folder := work / "documents").mkdir()
    lines = write_passages(work / "all.jsonl", passages, 1).read_text(encoding="utf-8").splitlines(keepends=True)
    for first in range(0, passages, ROWS_A_FILE):
        (folder / f"{first:07}.jsonl").write_text("".join(lines[first : first + ROWS_A_FILE]), encoding="utf-8")
    return folder


def pipeline(folder: Path, profile, workers: int, port: int):
    """Read, split, embed in a pool of actors, write in batches; lazily, so that nothing runs yet."""

    def cut(row: dict) -> Iterator[dict]:
        documents = [Document(row["title"], row["text"])]
        for chunk in split(documents, folder, profile.chunk_size, profile.chunk_overlap):
            yield {"id": chunk.id, "source": chunk.source, "text": chunk.text, "searched": chunk.searched}

    pool = ray.data.ActorPoolStrategy
    return (
        ray.data.read_json(str(folder))
        .flat_map(cut)
        .map_batches(
            Embed,
            fn_constructor_args=[profile.embedding_path],
            batch_size=EMBEDDED,
            num_cpus=1,
            compute=pool(size=workers),
        )
        .map_batches(Write, fn_constructor_args=[port], batch_size=WRITTEN, num_cpus=0.1, compute=pool(size=1))
    )


class Embed:
    """An actor: it loads the model once, and embeds batch after batch on one core."""

    def __init__(self, path: Path):
        import torch

        torch.set_num_threads(1)
        self.embedder = Embedder(path)
        self.embedder.load()

    def __call__(self, batch: dict) -> dict:
        began = time.time()
        vectors = self.embedder.encode(list(batch["searched"]))
        each = (time.time() - began) / len(vectors)
        rss = psutil.Process().memory_info().rss / 2**20
        spent = {"began": began, "embed_seconds": each, "worker_mib": rss}
        return batch | {name: np.full(len(vectors), figure) for name, figure in spent.items()} | {"vector": vectors}


class Write:
    """An actor: it sends batches to the server; the same passage twice is one passage."""

    def __init__(self, port: int):
        self.collection = connect(port).get_collection("passages", embedding_function=None)

    def __call__(self, batch: dict) -> dict:
        began = time.time()
        self.collection.upsert(
            ids=list(batch["id"]),
            embeddings=list(batch["vector"]),
            documents=list(batch["text"]),
            metadatas=[{"source": source} for source in batch["source"]],
        )
        ended = time.time()
        return {
            "embed_seconds": [batch["embed_seconds"].sum()],
            "began": [batch["began"].min()],
            "ended": [ended],
            "write_seconds": [ended - began],
            "worker_mib": [batch["worker_mib"].max()],
            "dimension": [batch["vector"].shape[1]],
        }


def tokens(folder: Path, profile) -> float:
    """Tokens of a passage with its title, on average over the first file."""
    rows = [json.loads(line) for line in min(folder.iterdir()).read_text(encoding="utf-8").splitlines()]
    ids = Embedder(profile.embedding_path).load().tokenizer([f"{row['title']}\n{row['text']}" for row in rows])
    return round(float(np.mean([len(one) for one in ids["input_ids"]])), 1)


def searched(collection, profile) -> dict:
    """Milliseconds of a search by the server, the query's vector given: the median and the 95th percentile."""
    vectors = Embedder(profile.embedding_path).encode([f"What is entry {n} about?" for n in range(SEARCHES)])
    took = []
    for vector in vectors:
        started = time.perf_counter()
        collection.query(query_embeddings=[vector], n_results=K)
        took.append(1000 * (time.perf_counter() - started))
    return {"search_ms_p50": round(np.quantile(took, 0.5), 1), "search_ms_p95": round(np.quantile(took, 0.95), 1)}


@contextmanager
def chroma(store: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A Chroma server over `store`, on a free port of this machine, for the length of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [shutil.which("chroma", path=Path(sys.executable).parent), "run", "--path", str(store)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(150):
                try:
                    connect(port).heartbeat()
                    break
                except ValueError:  # what Chroma's client raises where nobody listens
                    time.sleep(0.2)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def connect(port: int):
    """A client of that server."""
    return chromadb.HttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))


if __name__ == "__main__":
    main()
