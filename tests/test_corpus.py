"""Files to documents to chunks: every kind of file, and every way that a file can be bad."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import psutil
import pytest
from conftest import write_pdf
from fakes import FakeChat

from kit import pdf as pdf_module
from kit.config import KitError
from kit.corpus import Document, compress, find_files, read, split, title, whole_documents
from kit.pdf import PdfReader, ReadError


@pytest.fixture(scope="module")
def pdf():
    with PdfReader() as reader:
        yield reader


def documents(file: Path, pdf=None) -> list[Document]:
    return list(read(file, file.name, [], pdf))


def error_of(file: Path, pdf=None) -> str:
    with pytest.raises(ReadError) as caught:
        documents(file, pdf)
    sentence = str(caught.value)
    assert sentence.startswith(file.name) and sentence.endswith(".") and "\n" not in sentence
    return sentence


def page_of(stream: bytes, filters: bytes = b"/FlateDecode") -> bytes:
    """A PDF whose single page has `stream`, as it is, for its content."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        b"<</Filter%s/Length %d>>stream\n%s\nendstream" % (filters, len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, offsets = b"%PDF-1.5\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    tail = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n"
    return data + tail % (table, len(data))


# ---------------------------------------------------------------- finding files


def test_files_are_found_once_sorted_and_named_from_the_folder(tmp_path):
    for name in ("b.md", "sub/a.PDF", "c.png", ".hidden.txt", ".git/d.txt", "Årsrapport 2024 – 年次.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.txt").symlink_to("b.md")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_files([tmp_path, tmp_path / "b.md", tmp_path / "sub"])
    assert [source for _, source in found] == ["b.md", "sub/a.PDF", "Årsrapport 2024 – 年次.txt"]
    assert all(file.is_absolute() for file, _ in found)
    assert find_files([tmp_path / "sub" / ".." / "b.md"]) == [(tmp_path / "b.md", "b.md")]


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(KitError, match=r"no file or folder .*gone\.pdf"):
        find_files([tmp_path, tmp_path / "gone.pdf"])


def test_a_name_that_only_begins_like_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~backup.md").write_text("x")
    assert [source for _, source in find_files(["~backup.md"])] == ["~backup.md"]


def test_a_document_that_breaks_in_the_middle_is_left_out_whole(tmp_path, monkeypatch):
    def pages(self, file, source):
        yield "page one"
        raise ReadError(f"{source} is damaged.")

    monkeypatch.setattr(PdfReader, "pages", pages)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    failed = []
    assert whole_documents([tmp_path], failed) == [] and failed[0]["file"] == "a.pdf"


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(KitError, match=r"a\.docx cannot be read; give one of \.pdf"):
        find_files([tmp_path / "a.docx"])


def test_a_name_that_is_not_utf8(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("words")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    ((file, source),) = find_files([tmp_path])
    assert source == "caf\\xe9.txt"
    (chunk,) = split(read(file, source), file, 100, 0)
    assert chunk.text == "words" and chunk.file.encode()


# ---------------------------------------------------------------- text, HTML and rows


def test_text_and_markdown(tmp_path):
    (tmp_path / "a.md").write_text("# Title\n\nØdegård", encoding="utf-8-sig")
    assert documents(tmp_path / "a.md") == [Document("a.md", "# Title\n\nØdegård", None)]


def test_what_a_terminal_would_obey_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\x1b]52;c;AAAA\x07 two\r\nthree\tfour\u009b2J".encode())
    assert documents(tmp_path / "a.txt")[0].text == "one ]52;c;AAAA  two\nthree\tfour 2J"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le café fermé, où l’été dure. Nous avons mangé à midi."),
        ("latin-1", "A page of plain English, and in it the name of one person: Ødegård."),
        ("cp1250", "Zażółć gęślą jaźń. W Szczebrzeszynie chrząszcz brzmi w trzcinie."),
        ("cp1251", "Заседание совета состоялось четвёртого мая, бюджет утверждён."),
        ("shift_jis", "日本語の文章です。会議は五月四日に開かれました。"),
        ("utf-16", "Wide characters: Ødegård."),
    ],
)
def test_text_in_another_encoding_is_guessed(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert documents(tmp_path / "a.txt")[0].text == text


@pytest.mark.parametrize("data", [b"abc\0def", bytes(range(256)) * 20, b"\x7fELF\x02\x01\x01" + b"\0" * 90])
def test_bytes_that_are_no_text(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert "not text in a known encoding; save it as UTF-8" in error_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.pdf", "a.html", "a.md", "a.txt", "a.jsonl"])
def test_zero_bytes(tmp_path, name):
    (tmp_path / name).touch()
    assert "is empty (0 bytes)" in error_of(tmp_path / name)


def test_a_file_with_nothing_but_blanks(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n ")
    assert "holds no text" in error_of(tmp_path / "a.txt")


def test_a_file_that_is_too_large(tmp_path):
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(33 * 2**20)
    assert "33 MiB, more than the 32 MiB allowed" in error_of(tmp_path / "a.txt")


def test_a_file_that_vanished(tmp_path):
    assert "cannot be read (No such file or directory)" in error_of(tmp_path / "a.txt")


HTML = """<!DOCTYPE html><html><head><title>T</title><style>b {}</style><script>alert(1)</script></head><body>
<h1>Prices</h1><p>See the <a href="http://example.invalid/list">list</a>.</p>
<img src="http://example.invalid/i.png" alt="pic">
<iframe src="http://example.invalid/frame"></iframe>
<table><tr><th>Item</th><th>Price</th></tr><tr><td>A long name of an item which a plain table would wrap</td>
<td><p>12.50</p><p>crowns</p></td></tr><tr><td>Bolt</td><td>3</td></tr></table></body></html>"""


def test_html_keeps_the_text_and_a_table_row_on_a_line(tmp_path):
    (tmp_path / "a.html").write_text(HTML)
    (document,) = documents(tmp_path / "a.html")
    lines = [line for line in document.text.splitlines() if line]
    assert lines[:2] == ["Prices", "See the list."]
    assert "Item | Price" in lines and "Bolt | 3" in lines
    assert "A long name of an item which a plain table would wrap | 12.50 crowns" in lines
    assert not re.search("alert|http|pic|b {}", document.text)


def test_html_in_another_encoding(tmp_path):
    (tmp_path / "a.html").write_bytes(
        '<meta charset="iso-8859-1"><p>Blåbærsyltetøy på fjellet, sørgelig ærlig'.encode("latin-1")
    )
    assert "Blåbærsyltetøy" in documents(tmp_path / "a.html")[0].text


def test_html_that_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("kit.corpus.HTML_SECONDS", 0.5)
    (tmp_path / "a.html").write_text("<div>" * 50_000 + "x")
    assert "took more than" in error_of(tmp_path / "a.html")


def test_rows(tmp_path):
    rows = [{"title": "Ødegård", "text": "One."}, {"title": "B", "text": "Half \ud83d a pair.\0"}]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert documents(tmp_path / "a.jsonl") == [Document("Ødegård", "One."), Document("B", "Half  a pair.")]


def test_a_bad_row_is_reported_and_the_rest_go_on(tmp_path):
    lines = [
        b'{"title": "A", "text": "One."}',
        b"{oops",
        b"[1]",
        b'{"title": "B"}',
        b'{"title": "caf\xe9", "text": "x"}',
    ]
    lines += [b'{"title": 1, "text": "x"}', b"[" * 200_000, b'{"title": "C", "text": "Two."}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    failed = []
    assert [d.source for d in read(tmp_path / "a.jsonl", "a.jsonl", failed)] == ["A", "C"]
    assert [f["file"] for f in failed] == [f"a.jsonl:{number}" for number in range(2, 8)]
    assert 'no object with a "title" and a "text"' in failed[1]["error"]


def test_many_bad_rows_are_summed_up(tmp_path):
    (tmp_path / "a.jsonl").write_text("oops\n" * 50 + '{"title": "A", "text": "One."}')
    failed = []
    assert len(list(read(tmp_path / "a.jsonl", "a.jsonl", failed))) == 1
    assert len(failed) == 21 and failed[-1]["error"].startswith("30 more lines")


def test_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("kit.corpus.MAX_LINE_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "A", "text": "x" * 90}) + '\n{"title": "B", "text": "y"}\n{')
    failed = []
    assert [d.source for d in read(tmp_path / "a.jsonl", "a.jsonl", failed)] == ["B"]
    assert {f["file"] for f in failed} == {"a.jsonl:1", "a.jsonl:3"}


# ---------------------------------------------------------------- PDFs


def test_pages_of_a_pdf_with_a_difficult_name(tmp_path, pdf):
    file = write_pdf(tmp_path / "~Årsrapport 2024 – 年次 (1).pdf", ["First page.", "", "Third page."])
    assert documents(file, pdf) == [
        Document(file.name, t, n) for n, t in enumerate(["First page.", "", "Third page."], 1)
    ]


def test_an_encrypted_pdf(tmp_path, pdf):
    file = write_pdf(tmp_path / "a.pdf", ["Secret."], password="secret")
    assert "is encrypted; save a copy without its password" in error_of(file, pdf)


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_an_encrypted_pdf_that_anybody_may_open_is_read(tmp_path, pdf, algorithm):
    file = write_pdf(tmp_path / "a.pdf", ["Open."], password="", algorithm=algorithm)
    assert documents(file, pdf)[0].text == "Open."


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_pdf(tmp_path, pdf, share):
    file = write_pdf(tmp_path / "a.pdf", ["Some words."] * 3)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert "is damaged or cut short" in error_of(file, pdf)


def test_a_scanned_pdf(tmp_path, pdf):
    assert "no text on any page: it is probably a scan; run OCR first" in error_of(
        write_pdf(tmp_path / "a.pdf", ["", ""]), pdf
    )


def test_something_else_that_is_called_pdf(tmp_path, pdf):
    (tmp_path / "a.pdf").write_text("<html>404</html>" * 50)
    assert "is damaged or cut short" in error_of(tmp_path / "a.pdf", pdf)


def two_gigabytes() -> bytes:
    """Zlib data that unpacks to 2 GiB of blanks: one block of 16 MiB, 128 times."""
    packer = zlib.compressobj()
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    return head + (packer.compress(b" " * 2**24) + packer.flush(zlib.Z_FULL_FLUSH)) * 128


BOMBS = {
    "unpacks to 2 GiB": lambda: page_of(two_gigabytes()),
    "unpacks twice": lambda: page_of(zlib.compress(two_gigabytes()), b"[/FlateDecode/FlateDecode]"),
    "70 MiB of text": lambda: page_of(zlib.compress(b"BT /F 1 Tf (" + b"A" * 1000 + b") Tj ET " * 70_000)),
}
BOMB_SCRIPT = """
import json, pathlib, resource, sys, time
from kit.pdf import PdfReader
seconds, errors = [], []
with PdfReader() as reader:
    for path in sys.argv[1:]:
        started = time.monotonic()
        try:
            list(reader.pages(pathlib.Path(path), "bomb.pdf"))
        except Exception as error:
            errors.append(f"{type(error).__name__} {error}")
            seconds.append(time.monotonic() - started)
print(json.dumps([seconds, errors, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def test_decompression_bombs_are_stopped_within_30_seconds_and_1_gib(tmp_path):
    files = [write_pdf(tmp_path / "good.pdf", ["Words."])]  # it starts the process, whose imports take time too
    for name, bomb in BOMBS.items():
        files.append(tmp_path / f"{name}.pdf")
        files[-1].write_bytes(bomb())
        assert files[-1].stat().st_size < 3 * 2**20
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", BOMB_SCRIPT, *files], cwd=root, capture_output=True, text=True)
    seconds, errors, peak = json.loads(done.stdout)
    assert len(errors) == len(BOMBS) and all(error.startswith("ReadError bomb.pdf") for error in errors)
    assert max(seconds) < 30 and peak < 1024  # MiB, the most that any child process ever held
    assert done.stderr == ""


STAND_IN = """
import os, sys, time
from types import SimpleNamespace as Page
class Loader:
    def __init__(self, file): pass
    def lazy_load(self): return {pages}
sys.modules["langchain_community"] = sys.modules["langchain_community.document_loaders"] = Page(PyPDFLoader=Loader)
import kit.pdf
kit.pdf.SECONDS = 0.5
kit.pdf.serve_pdfs()
"""


class StandIn(PdfReader):
    """Reads every file as `pages`, a Python expression; the process is the real one but for pypdf."""

    def __init__(self, pages: str):
        super().__init__()
        self.program = STAND_IN.format(pages=pages)

    def _start(self) -> None:
        root, pipe = Path(__file__).parents[1], subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.program], cwd=root, stdin=pipe, stdout=pipe, text=True
        )


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ("(time.sleep(9) for _ in [1])", "given up after"),
        ("(Page(page_content='', n=time.sleep(0.05)) for _ in range(99))", "given up after"),
        ("(bytearray(2**20) and Page(page_content='', n=bytearray(2**30)) for _ in [1])", "more than 1 GiB of memory"),
        ("(os.abort() for _ in [1])", "crashed the PDF reader"),
        ("iter([Page(page_content='x' * 10**6)] * 5)", "like a decompression bomb"),
    ],
)
def test_a_reader_that_hangs_creeps_grows_or_dies(tmp_path, pages, message):
    write_pdf(tmp_path / "a.pdf", ["x"])
    with StandIn(pages) as reader:
        assert message in error_of(tmp_path / "a.pdf", reader)
        if "bomb" not in message:
            assert reader.process is None  # the next file gets a new one


def test_time_spent_on_using_a_page_is_not_held_against_the_file(tmp_path):
    write_pdf(tmp_path / "a.pdf", ["x"])
    with StandIn("iter([Page(page_content='x')] * 3)") as reader:
        pages = read(tmp_path / "a.pdf", "a.pdf", None, reader)
        next(pages)
        time.sleep(0.8)
        assert len(list(pages)) == 2


def test_one_process_reads_all_files_and_is_replaced_when_a_file_is_left_in_the_middle(tmp_path, pdf):
    a, b = (write_pdf(tmp_path / name, ["One.", "Two."]) for name in ("a.pdf", "b.pdf"))
    documents(a, pdf)
    first = pdf.process.pid
    documents(b, pdf)
    assert pdf.process.pid == first
    left = read(a, "a.pdf", None, pdf)
    next(left)
    left.close()
    assert [d.source for d in documents(b, pdf)] == ["b.pdf", "b.pdf"]
    assert pdf.process.pid != first


def test_the_reader_does_not_outlive_its_parent(tmp_path):
    file = write_pdf(tmp_path / "a.pdf", ["One.", "Two."])
    program = "import os, sys, pathlib; from kit.pdf import PdfReader; r = PdfReader(); "
    program += "pages = r.pages(pathlib.Path(sys.argv[1]), 'a'); next(pages); print(r.process.pid, flush=True); "
    program += "os.kill(os.getpid(), 9)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, file], cwd=root, capture_output=True, text=True)
    assert done.returncode == -9
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)) and psutil.Process(int(done.stdout)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_thousand_pages(tmp_path, pdf):
    from pypdf import PdfReader as Source
    from pypdf import PdfWriter

    page, target = Source(write_pdf(tmp_path / "one.pdf", ["The council met. " * 10])).pages[0], PdfWriter()
    for _ in range(2000):
        target.add_page(page)
    target.write(tmp_path / "a.pdf")
    pages = read(tmp_path / "a.pdf", "a.pdf", None, pdf)
    assert [d.page for d in itertools.islice(pages, 3)] == [1, 2, 3]  # they come as they are read
    *_, last = pages
    assert last.page == 2000 and last.text.startswith("The council met.")


# ---------------------------------------------------------------- splitting


def test_chunks_have_stable_ids_and_stay_within_their_page(tmp_path):
    pages = [Document("a.pdf", "alpha beta gamma delta " * 20, 1), Document("a.pdf", "epsilon", 2)]
    chunks = list(split(pages, tmp_path / "a.pdf", 100, 20))
    assert chunks == list(split(pages, tmp_path / "a.pdf", 100, 20))
    assert all(len(chunk.text) <= 100 and chunk.text in pages[chunk.page - 1].text for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == len(chunks) and len(chunks[0].id) == 32
    assert chunks[-1] == next(split(pages[1:], tmp_path / "a.pdf", 100, 20))
    (other,) = split(pages[1:], tmp_path / "b.pdf", 100, 20)
    assert other.id != chunks[-1].id


def test_a_chunk_knows_where_it_stands_and_what_it_is_about(tmp_path):
    page = Document("travel_policy-v2.pdf", "alpha beta gamma delta " * 20, 1)
    chunks = list(split([page], tmp_path / "a.pdf", 100, 20))
    assert all(
        page.text.startswith(chunk.text, chunk.start) or chunk.text in page.text[: chunk.start] for chunk in chunks
    )
    assert chunks[0].searched.startswith("travel policy v2\nalpha")
    assert [title(s) for s in ("dir/q-1.html", "St. John's", "U.S. Route 1")] == ["q 1", "St. John's", "U.S. Route 1"]


def test_the_same_text_comes_once_a_page(tmp_path):
    text = "\n\n".join(["the same line of thirty letters"] * 5)
    assert len(list(split([Document("a", text, 1), Document("a", text, 2)], tmp_path / "a", 40, 0))) == 2


def test_splitting_streams(tmp_path):
    endless = (Document("a.jsonl", f"row {n}") for n in itertools.count())
    assert next(split(endless, tmp_path / "a.jsonl", 100, 0)).text == "row 0"


def test_nothing_is_started_for_other_kinds(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("words")
    monkeypatch.setattr(pdf_module.PdfReader, "_start", lambda self: pytest.fail("the PDF reader was started"))
    assert len(documents(tmp_path / "a.txt", PdfReader())) == 1


def test_a_summary_takes_the_place_of_a_document():
    model = FakeChat(" Owls hunt by night. ")
    short = compress(Document("owls-and-mice.pdf", "An owl hunts by night. " * 50, 3), model, tokens=90)
    assert short == Document("owls-and-mice.pdf", "Owls hunt by night.", 3)
    (request,) = model.asked
    assert request["max_tokens"] == 90 and "at most 45 words" in request["messages"][0]["content"]
    assert request["messages"][0]["content"].startswith("owls and mice\n\nAn owl"), "the text first, the order last"
