"""Incremental ingest and search, over a real Chroma and a fake embedder."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chromadb.errors import InternalError
from conftest import FakeEmbedder, write_pdf

from kit.config import KitError
from kit.index import Embedder, Index
from kit.pdf import PdfReader
from kit.retriever import Hit, joined

ROOT = Path(__file__).parents[1]


@pytest.fixture
def docs(tmp_path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tides.txt").write_text("The harbour tide table gives high water at noon.")
    (folder / "bread.md").write_text("# Bread\n\nRye bread is baked from flour, water and salt.")
    rows = [{"title": "Comets", "text": "A comet has a tail."}, {"title": "Owls", "text": "An owl hunts by night."}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def make(tmp_path, embedder, size: int = 200, overlap: int = 20) -> Index:
    return Index.create(tmp_path / "index", embedder, size, overlap)


def counts(result: dict) -> tuple:
    return tuple(result[key] for key in ("files", "pages", "chunks", "added", "unchanged", "removed"))


def contents(index: Index) -> set[tuple[str, str]]:
    got = index._collection.get(include=["documents", "metadatas"])
    return {(meta["source"], text) for meta, text in zip(got["metadatas"], got["documents"], strict=True)}


# ---------------------------------------------------------------- ingest


def test_first_ingest_then_nothing_to_do(tmp_path, docs, embedder, monkeypatch):
    with make(tmp_path, embedder) as index:
        result = index.ingest([docs])
        assert counts(result) == (3, 4, 4, 3, 0, 0) and result["failed"] == [] and result["seconds"] > 0
        assert index.count() == 4 == embedder.texts
        monkeypatch.setattr(PdfReader, "_start", lambda self: pytest.fail("the PDF reader was started"))
        assert counts(index.ingest([docs])) == (3, 4, 4, 0, 3, 0)
    with make(tmp_path, embedder) as index:  # and in a new process just the same
        assert counts(index.ingest([docs])) == (3, 4, 4, 0, 3, 0)
    assert embedder.texts == 4


def test_pages_of_a_pdf_are_found_by_number(tmp_path, embedder):
    write_pdf(tmp_path / "docs/sub/Årsrapport 年次.pdf", ["Nothing here.", "", "The lighthouse keeper left."])
    with make(tmp_path, embedder) as index:
        assert counts(index.ingest([tmp_path / "docs"])) == (1, 3, 2, 1, 0, 0)
        _, source, page, score, text, _ = index.search("lighthouse keeper", 1)[0]
    assert (source, page, text) == ("sub/Årsrapport 年次.pdf", 3, "The lighthouse keeper left.")
    assert 0.5 < score <= 1.0


def test_a_changed_file_is_replaced_and_what_did_not_change_in_it_is_not_embedded_again(tmp_path, docs, embedder):
    rows = docs / "rows.jsonl"
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        rows.write_text(rows.read_text().replace("by night", "at dawn"))
        assert counts(index.ingest([docs])) == (3, 4, 4, 1, 2, 0)
        assert ("Owls", "An owl hunts at dawn.") in contents(index)
        assert index.count() == 4 and embedder.texts == 5


def test_text_that_moved_within_a_file_is_read_in_its_new_order(tmp_path, embedder):
    one, two, three = (f"Chapter {n} is about the sea and the weather on it." for n in ("one", "two", "three"))
    (tmp_path / "a.txt").write_text(f"{one}\n\n{two}")
    with make(tmp_path, embedder, 60, 10) as index:
        index.ingest([tmp_path / "a.txt"])
        (tmp_path / "a.txt").write_text(f"{three}\n\n{two}\n\n{one}")
        index.ingest([tmp_path / "a.txt"])
        read = joined([Hit(*row) for row in index.passages("a.txt")])
    places = [read.index(text) for text in (three, two, one)]
    assert places == sorted(places)
    assert embedder.texts == 3, "what only moved is not embedded again"


def test_deleted_files_go_but_only_beneath_the_given_paths(tmp_path, docs, embedder):
    for folder in ("a", "ab"):  # "a" is no parent of "ab", though its name begins like it
        (docs / folder).mkdir()
        (docs / folder / "x.txt").write_text(f"Text of {folder}.")
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        for path in ("a/x.txt", "ab/x.txt", "tides.txt"):
            (docs / path).unlink()
        (docs / "a/y.txt").write_text("More.")
        assert counts(index.ingest([docs / "a"])) == (1, 1, 1, 1, 0, 1)
        assert {source for source, _ in contents(index)} >= {"ab/x.txt", "tides.txt", "y.txt"}
        result = index.ingest([docs])
        assert result["removed"] == 2 and {s for s, _ in contents(index)} == {"bread.md", "Comets", "Owls", "a/y.txt"}


def test_an_index_by_words_that_was_lost_is_made_again_and_nothing_is_embedded_again(tmp_path, docs, embedder):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
    shutil.rmtree(tmp_path / "index" / "words")
    with pytest.raises(KitError, match="kit ingest"):
        Index.open(tmp_path / "index", embedder)
    with make(tmp_path, embedder) as index:
        assert counts(index.ingest([docs])) == (3, 4, 4, 3, 0, 0)
        assert index.match("owls", 1) and index._words.count() == index.count() == 4
    assert embedder.texts == 4


def test_an_index_that_changed_beneath_its_reader_is_one_sentence(tmp_path, docs, embedder, monkeypatch):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])

        def gone(**_):
            raise InternalError("Error finding id")

        monkeypatch.setattr(
            index, "_collection", SimpleNamespace(query=gone, get=gone, metadata=index._collection.metadata)
        )
        for read in (lambda: index.search("owls", 1), lambda: index.get(["1"]), lambda: index.named("Owls", "owls", 1)):
            with pytest.raises(KitError, match="another process wrote to it"):
                read()


def test_a_fingerprint_tells_indexes_apart(tmp_path, docs, embedder):
    found = []
    for name, size, text in (("a", 200, "High."), ("b", 200, "High."), ("c", 100, "High."), ("d", 200, "Low.")):
        (docs / "tides.txt").write_text(text)
        with Index.create(tmp_path / name, embedder, size, 20) as index:
            index.ingest([docs])
            found.append(index.fingerprint())
    assert found[0] == found[1] and len(set(found)) == 3


def test_the_last_file_of_a_folder_can_go(tmp_path, embedder):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("Only.")
    with make(tmp_path, embedder) as index:
        index.ingest([tmp_path / "docs"])
        (tmp_path / "docs/a.txt").unlink()
        assert counts(index.ingest([tmp_path / "docs"])) == (0, 0, 0, 0, 0, 1)
        assert index.count() == 0


def test_equal_content_in_two_files_is_kept_twice(tmp_path, embedder):
    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "docs" / name).write_text("The same words.")
    with make(tmp_path, embedder) as index:
        assert counts(index.ingest([tmp_path / "docs"])) == (2, 2, 2, 2, 0, 0)
        assert [hit[1] for hit in index.search("same words", 5)] in (["a.txt", "b.txt"], ["b.txt", "a.txt"])


def test_equal_rows_of_one_file_are_kept_once(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("kit.ingest.BUFFER", 2)
    row = json.dumps({"title": "A", "text": "Same."}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 5 + json.dumps({"title": "B", "text": "Other."}))
    with make(tmp_path, embedder) as index:
        assert counts(index.ingest([tmp_path / "a.jsonl"])) == (1, 6, 2, 1, 0, 0)
        assert index.count() == 2


def test_files_and_batches_need_not_end_together(tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("kit.ingest.BUFFER", 7)
    (tmp_path / "docs").mkdir()
    for n in range(10):
        (tmp_path / f"docs/{n}.txt").write_text(
            "\n\n".join(f"Paragraph {n} {i} " + "word " * 30 for i in range(n)) or "x"
        )
    with make(tmp_path, embedder) as index:
        monkeypatch.setattr(index._client, "get_max_batch_size", lambda: 3)
        assert counts(index.ingest([tmp_path / "docs"])) == (10, 10, 46, 10, 0, 0)
        assert index.count() == 46 == embedder.texts
        for n in range(10):
            (tmp_path / f"docs/{n}.txt").unlink()
        (tmp_path / "docs/new.txt").write_text("New.")
        assert counts(index.ingest([tmp_path / "docs"])) == (1, 1, 1, 1, 0, 10)
        assert index.count() == 1


# ---------------------------------------------------------------- what is refused, and what goes wrong


def test_one_broken_file_among_good_ones(tmp_path, docs, embedder):
    write_pdf(docs / "locked.pdf", ["Secret."], password="secret")
    write_pdf(docs / "scan.pdf", [""])
    write_pdf(docs / "good.pdf", ["Good."])
    (docs / "cut.pdf").write_bytes((docs / "good.pdf").read_bytes()[:300])
    (docs / "zero.pdf").touch()
    (docs / "rows.jsonl").write_text('{"title": "Comets", "text": "A tail."}\noops\n')
    with make(tmp_path, embedder) as index:
        result = index.ingest([docs])
        failed = {row["file"]: row["error"] for row in result["failed"]}
        assert set(failed) == {"locked.pdf", "scan.pdf", "cut.pdf", "zero.pdf", "rows.jsonl:2"}
        assert "encrypted" in failed["locked.pdf"] and "run OCR first" in failed["scan.pdf"]
        assert counts(result) == (8, 4, 4, 4, 0, 0)
        assert {source for source, _ in contents(index)} == {"good.pdf", "tides.txt", "bread.md", "Comets"}
        again = index.ingest([docs])
        assert counts(again) == (8, 4, 4, 0, 4, 0) and len(again["failed"]) == 4


def test_a_file_that_breaks_keeps_what_it_had_and_leaves_no_half(tmp_path, docs, embedder, monkeypatch):
    monkeypatch.setattr("kit.ingest.BUFFER", 1)  # every chunk is in Chroma before the file turns out to be broken
    pages = write_pdf(docs / "a.pdf", ["One.", "Two."])
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        before = contents(index)
        write_pdf(pages, ["One.", "Changed.", "Three."])
        monkeypatch.setattr("kit.pdf.PdfReader.pages", breaks_after(PdfReader.pages, 3))
        result = index.ingest([docs])
        assert [row["file"] for row in result["failed"]] == ["a.pdf"] and counts(result) == (4, 6, 6, 0, 3, 0)
        assert contents(index) == before
        monkeypatch.undo()
        assert counts(index.ingest([docs])) == (4, 7, 7, 1, 3, 0)
        assert ("a.pdf", "Changed.") in contents(index) and ("a.pdf", "Two.") not in contents(index)


def breaks_after(pages, count: int):
    from kit.pdf import ReadError

    def broken(self, file, source):
        for number, text in enumerate(pages(self, file, source), 1):
            yield text
            if number == count:
                raise ReadError(f"{source} is damaged.")

    return broken


def test_no_such_file_and_an_empty_folder(tmp_path, embedder):
    (tmp_path / "empty").mkdir()
    with make(tmp_path, embedder) as index:
        with pytest.raises(KitError, match=r"There is no document in .*empty"):
            index.ingest([tmp_path / "empty"])
        with pytest.raises(KitError, match=r"There is no file or folder .*gone"):
            index.ingest([tmp_path / "gone"])
    with pytest.raises(KitError, match=r"or an empty one; run `kit ingest PATH --index"):
        Index.open(tmp_path / "index", embedder)


def test_a_folder_that_is_no_index_is_left_as_it_is(tmp_path, embedder):
    with pytest.raises(KitError, match="There is no index in"):
        Index.open(tmp_path / "none", embedder)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_other_settings_built(tmp_path, docs, embedder):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
    with pytest.raises(KitError, match=r"embedding fake, not with embedding other; use another --index folder"):
        Index.open(tmp_path / "index", FakeEmbedder("other"))
    with pytest.raises(KitError, match=r"embedding fake, not with embedding other"):
        make(tmp_path, FakeEmbedder("other"))
    with pytest.raises(KitError, match=r"chunk_size 200, chunk_overlap 20, not with chunk_size 300, chunk_overlap 30"):
        make(tmp_path, embedder, 300, 30)
    with (
        Index.open(tmp_path / "index", FakeEmbedder(dimension=32)) as index,
        pytest.raises(KitError, match="dimension 64, not with dimension 32"),
    ):
        index.search("owl", 1)
    with Index.open(tmp_path / "index", embedder) as index:  # to read, the chunking need not be known
        assert index.count() == 4
    with make(tmp_path, embedder) as index:
        assert counts(index.ingest([docs])) == (3, 4, 4, 0, 3, 0)


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (100, 100), (100, -1)])
def test_chunking_that_makes_no_sense(tmp_path, embedder, size, overlap):
    with pytest.raises(KitError, match="cannot overlap"):
        make(tmp_path, embedder, size, overlap)


def test_a_second_writer_is_refused(tmp_path, docs, embedder):
    with make(tmp_path, FakeEmbedder(seconds=1.0)) as first, make(tmp_path, embedder) as second:
        writer = threading.Thread(target=first.ingest, args=[[docs]])
        writer.start()
        time.sleep(0.5)
        with pytest.raises(KitError, match=r"Another process is writing to the index .*; wait until it is done"):
            second.ingest([docs])
        writer.join()
        assert counts(second.ingest([docs])) == (3, 4, 4, 0, 3, 0)


def test_a_full_disk_loses_nothing(tmp_path, docs, embedder, monkeypatch):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        rows = [json.dumps({"title": f"T{n}", "text": f"Text {n}."}) for n in range(2000)]
        (docs / "many.jsonl").write_text("\n".join(rows))
        connect = sqlite3.connect

        def small(path):
            manifest = connect(path)
            manifest.execute("pragma max_page_count = 20")  # SQLite then answers as on a full disk
            return manifest

        monkeypatch.setattr(sqlite3, "connect", small)
        with pytest.raises(KitError, match=r"database or disk is full.*see that its disk has room"):
            index.ingest([docs])
        assert index.count() >= 4
        monkeypatch.undo()
        assert counts(index.ingest([docs])) == (4, 2004, 2004, 1, 3, 0)
        assert index.count() == 2004


KILLED = """
import sys
sys.path.insert(0, "tests")
from conftest import FakeEmbedder
import kit.ingest
from kit.index import Index
kit.ingest.BUFFER = 8
Index.create(sys.argv[2], FakeEmbedder(seconds=0.005), 200, 20).ingest([sys.argv[1]])
"""


@pytest.mark.parametrize("written", [1, 40, 90])
def test_an_ingest_that_is_killed_is_finished_by_the_next(tmp_path, docs, embedder, written):
    """SIGKILL comes when the collection holds `written` chunks, whatever the run is doing then."""
    for name in ("m1", "m2"):
        rows = [json.dumps({"title": f"{name} {n}", "text": f"Text {n} of {name}."}) for n in range(100)]
        (docs / f"{name}.jsonl").write_text("\n".join(rows))
    process = subprocess.Popen([sys.executable, "-c", KILLED, docs, tmp_path / "index"], cwd=ROOT)
    until(lambda: chunks_on_disk(tmp_path / "index") >= written)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    # The file that it was busy with changes before the next run, so that chunks of it are stale.
    (docs / "m1.jsonl").write_text((docs / "m1.jsonl").read_text().replace("Text 0 ", "Changed 0 "))
    with make(tmp_path, embedder) as index:
        held = index.count()
        assert written <= held < 204
        result = index.ingest([docs])
        assert result["chunks"] == 204 == index.count() and result["failed"] == []
        assert embedder.texts <= 204 - held + 1  # what was written before is not embedded again
        assert index.match("changed", 9) and len(index.match("text", 300)) == 199, "one was replaced, none is twice"
        assert ("m1 0", "Changed 0 of m1.") in contents(index) and ("m1 0", "Text 0 of m1.") not in contents(index)
        assert counts(index.ingest([docs])) == (5, 204, 204, 0, 5, 0)


def until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def chunks_on_disk(folder: Path) -> int:
    if not (folder / "files.sqlite").is_file():
        return 0
    database = sqlite3.connect(f"file:{folder / 'chroma.sqlite3'}?mode=ro", uri=True)
    try:
        return database.execute("select count(*) from embeddings").fetchone()[0]
    except sqlite3.OperationalError:  # the tables are not there yet, or locked for a moment
        return 0
    finally:
        database.close()


def test_a_manifest_that_was_left_without_its_chunks(tmp_path, docs, embedder):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        index._collection.delete(ids=index._collection.get(include=[])["ids"])
        assert counts(index.ingest([docs])) == (3, 4, 4, 3, 0, 0)


# ---------------------------------------------------------------- search and the embedder


def test_search_gives_the_nearest_first_and_no_more_than_there_is(tmp_path, docs, embedder):
    with make(tmp_path, embedder) as index:
        index.ingest([docs])
        rows = index.search("an owl hunts by night", 10)
        assert len(rows) == 4 and rows[0][1] == "Owls" and rows[0][2] is None
        assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
        query, text = embedder.encode(["an owl hunts by night", f"Owls\n{rows[0][4]}"])
        assert rows[0][3] == pytest.approx(float(query @ text), abs=1e-5)  # the score is the cosine


def test_no_embedding_model(tmp_path):
    with pytest.raises(KitError, match=r"There is no embedding model in .*none; run `kit setup`"):
        Embedder(tmp_path / "none").encode(["x"])


def test_a_broken_embedding_model(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(KitError, match=r"The embedding model in .* is broken"):
        Embedder(tmp_path).encode(["x"])


def test_a_real_embedding_model(tmp_path, capfd):
    """A tiny model of random weights, to see that ours is loaded, quiet, and gives unit vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW, Dense

    vocabulary = ["owl", "comet", "bread"]
    SentenceTransformer(modules=[BoW(vocabulary), Dense(3, 5)]).save(str(tmp_path / "tiny"))
    capfd.readouterr()
    embedder = Embedder(tmp_path / "tiny")
    assert embedder.name == "tiny" and embedder._model is None
    vectors = embedder.encode(["owl comet", "bread"])
    assert vectors.shape == (2, embedder.dimension) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert embedder.encode(["owl"], is_query=True).shape == (1, 5)
    assert capfd.readouterr().err == ""
