"""How fast documents get into the index, what that costs in memory and disk, and beside what.

    python benchmarks/ingest.py                    all parts, half an hour on 2 cores
    python benchmarks/ingest.py --parts pdf,jsonl

Parts: `pdf`, the collection of data/ (its reading apart, and the way of the original flow beside it);
`jsonl`, 2,000 passages beside embedding the same texts and nothing else, then once more unchanged;
`1000`, `10000` and `100000`, so many chunks. Each runs in a process of its own, so that its peak memory is its
own, and leaves its figures in benchmarks/results/ingest/, where a stopped run goes on. Prints one JSON
object. The passages are sentences of data/ in random order, each row with a number of its own.
"""

import argparse
import json
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

from kit.config import load_profile
from kit.corpus import find_files, read, split
from kit.index import Embedder, Index
from kit.pdf import PdfReader

DATA = Path(__file__).parent.parent / "data"
RESULTS = Path(__file__).parent / "results" / "ingest"
PARTS = ("pdf", "jsonl", "1000", "10000", "100000")
PASSAGES, SENTENCES, REPEATS = 2_000, 6, 3  # about 600 characters each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)  # one part, in this process
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if args.here:
        figures = {"pdf": pdf, "jsonl": jsonl}.get(args.here, lambda: scale(int(args.here)))()
        (RESULTS / f"{args.here}.json").write_text(json.dumps(figures | {"peak_mib": _peak()}))
        return
    found = {}
    for part in args.parts.split(","):
        if not (RESULTS / f"{part}.json").exists():
            subprocess.run([sys.executable, __file__, "--here", part], check=True, stdout=sys.stderr)
        found[part] = json.loads((RESULTS / f"{part}.json").read_text())
    print(json.dumps({"machine": machine(), **found}, indent=2))


def pdf() -> dict:
    """Pages and chunks a second of data/collection, and of the original flow over its PDFs alone."""
    embedder = _warm()
    files = find_files([DATA / "collection"])
    with PdfReader() as reader:
        seconds, documents = _timed(lambda: [d for file, source in files for d in read(file, source, pdf=reader)])
    with tempfile.TemporaryDirectory() as folder, _index(folder, embedder) as index:
        result = index.ingest([DATA / "collection"])
    with tempfile.TemporaryDirectory() as folder:
        theirs, chunks = _timed(lambda: _original(embedder, folder))
    return {
        "pages": result["pages"],
        "chunks": result["chunks"],
        "read_seconds": round(seconds, 2),
        "read_pages_per_second": round(len(documents) / seconds, 1),
        "seconds": result["seconds"],
        "chunks_per_second": round(result["chunks"] / result["seconds"], 1),
        "original_seconds": round(theirs, 2),
        "original_chunks": chunks,
    }


def _original(embedder: Embedder, folder: str) -> int:
    """The original's ingest of the PDFs: LangChain all the way, chunks of 1,000 characters."""
    from langchain_community.document_loaders import PyPDFLoader
    from langchain_community.vectorstores import Chroma
    from langchain_core.embeddings import Embeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    class Loaded(Embeddings):
        """The model that is in memory already, so that loading it is nobody's time."""

        def embed_documents(self, texts):
            return embedder.load().encode(texts).tolist()

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    pages = [page for file in sorted((DATA / "collection").glob("*.pdf")) for page in PyPDFLoader(str(file)).load()]
    chunks = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_documents(pages)
    Chroma.from_documents(chunks, Loaded(), persist_directory=folder)
    return len(chunks)


def jsonl() -> dict:
    """2,000 passages: ingest and embedding alone in turn, the ratio of their medians; then nothing to do."""
    embedder, profile = _warm(), load_profile()
    with tempfile.TemporaryDirectory() as folder:
        file = write_passages(Path(folder) / "passages.jsonl", PASSAGES, SENTENCES)
        documents = read(file, file.name)
        texts = [c.searched for c in split(documents, file, profile.chunk_size, profile.chunk_overlap)]
        alone, whole, again = [], [], []
        for n in range(REPEATS):
            alone.append(_timed(lambda: embedder.load().encode(texts, show_progress_bar=False))[0])
            with _index(f"{folder}/{n}", embedder) as index:
                whole.append(index.ingest([file])["seconds"])
                again.append(index.ingest([file])["seconds"])
    first, bare, unchanged = (statistics.median(seconds) for seconds in (whole, alone, again))
    return {
        "passages": PASSAGES,
        "chunks": len(texts),
        "seconds": first,
        "chunks_per_second": round(len(texts) / first, 1),
        "embedding_alone_seconds": round(bare, 2),
        "ratio_to_embedding_alone": round(first / bare, 3),
        "unchanged_seconds": unchanged,
        "unchanged_times_faster": round(first / unchanged),
    }


def scale(count: int) -> dict:
    """So many chunks into an index that stays, for search.py: time, memory, size."""
    folder = RESULTS / f"index-{count}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped, whose seconds are lost
    embedder = _warm()
    before = _peak()
    file = write_passages(RESULTS / f"{count}.jsonl", count, 1)  # about 100 characters: one chunk
    with _index(folder, embedder) as index:
        result = index.ingest([file])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "chunks": result["chunks"],
        "seconds": result["seconds"],
        "chunks_per_second": round(result["chunks"] / result["seconds"], 1),
        "index_mib": round(size / 2**20, 1),
        "peak_mib_before": before,
    }


def write_passages(file: Path, count: int, sentences: int) -> Path:
    """`count` rows of so many sentences of data/, in an order that is the same each time."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((DATA / "content").rglob("*")) if path.is_file()]
    pool = [part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text) if 40 < len(part) < 160]
    chance = random.Random(count)
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            text = " ".join([f"Entry {number}.", *chance.sample(pool, sentences)])
            out.write(json.dumps({"title": f"Entry {number}", "text": text}, ensure_ascii=False) + "\n")
    return file


def _warm() -> Embedder:
    embedder = Embedder(load_profile().embedding_path)
    embedder.encode(["warm"])
    return embedder


def _index(folder, embedder: Embedder) -> Index:
    profile = load_profile()
    return Index.create(folder, embedder, profile.chunk_size, profile.chunk_overlap)


def _timed(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _peak() -> int:
    """The most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
