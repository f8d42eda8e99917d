"""Make a document collection from a folder of plain text: PDFs, HTML pages and questions.

    python data/make_data.py [--content DIR] [--out DIR]

Each `*.md` file of the content folder is one document. It begins with `key: value` lines (title,
kind, date, org, and `format: html` for a web page), then a blank line, then text in a small
subset of Markdown, one block to a line: `#` and `##` headings, paragraphs, `- ` and `1. ` items,
`|` tables (the first row is the head), and `---` to begin a new page. `questions.toml` holds the questions;
the page of each piece of evidence is looked up in the PDF that was just made.

The same content gives the same bytes: dates come from the documents, and nothing is compressed,
because compressed bytes depend on the zlib at hand.
"""

import argparse
import html
import json
import re
import sys
import tomllib
from collections import Counter
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import matplotlib
from bs4 import BeautifulSoup
from fpdf import FPDF
from pypdf import PdfReader

HERE = Path(__file__).parent
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
GREY, BLUE = (90, 90, 90), (24, 62, 92)


def parse(text: str) -> tuple[dict, list[tuple[str, object]]]:
    """A content file as its fields and its blocks, each `(kind, text)` or `("table", rows)`."""
    head, body = text.split("\n\n", 1)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    blocks = []
    for chunk in re.split(r"\n\s*\n", body.strip()):
        for kind, lines in groupby(chunk.splitlines(), key=_kind):
            if kind == "table":
                blocks.append((kind, [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]))
            else:
                blocks += [(kind, re.sub(r"^#+ |^- ", "", line)) for line in lines]
    return fields, blocks


def _kind(line: str) -> str:
    if line == "---":
        return "break"
    if re.match(r"\d+\. ", line):
        return "number"
    prefixes = {"## ": "h2", "# ": "h1", "|": "table", "- ": "item"}
    return next((kind for prefix, kind in prefixes.items() if line.startswith(prefix)), "text")


class Pdf(FPDF):
    """An A4 document that repeats its title above and its page number below."""

    def __init__(self, fields: dict):
        super().__init__()
        self.fields = fields
        self.set_compression(False)
        self.set_creation_date(datetime.fromisoformat(fields["date"]).replace(tzinfo=UTC))
        self.set_title(fields["title"])
        self.set_author(fields["org"])
        self.set_producer("data/make_data.py")
        self.add_font("body", "", FONTS / "DejaVuSerif.ttf")
        self.add_font("body", "B", FONTS / "DejaVuSans-Bold.ttf")
        self.set_margins(24, 20)
        self.set_auto_page_break(True, margin=24)

    def header(self):
        self.paragraph(f"{self.fields['title']} · {self.fields['org']}", 8.5, color=GREY, after=5)

    def footer(self):
        self.set_y(-16)
        self.paragraph(f"{self.fields['kind']} · {self.fields['date']} · Page {self.page_no()}", 8.5, color=GREY)

    def paragraph(self, text: str, size: float, style="", color=(0, 0, 0), indent=0.0, after=0.0):
        self.set_font("body", style, size)
        self.set_text_color(*color)
        self.set_x(self.l_margin + indent)
        self.multi_cell(0, size * 0.545, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(after)

    def rows(self, rows: list[list[str]]):
        self.set_font("body", "", 9.5)
        self.set_text_color(0, 0, 0)
        with self.table(
            col_widths=[_width(column) for column in zip(*rows, strict=True)],
            text_align="LEFT",
            line_height=6,
            padding=0.8,
        ) as table:
            for row in rows:
                table.row(row)
        self.ln(4)


def _width(column: tuple[str, ...]) -> int:
    """The share of a column, in characters: long cells wrap, but no word is broken."""
    longest_word = max(len(word) for cell in column for word in cell.split())
    return max(longest_word + 4, min(30, max(map(len, column))))


def write_pdf(fields: dict, blocks: list, path: Path) -> None:
    pdf = Pdf(fields)
    pdf.add_page()
    pdf.paragraph(fields["title"], 20, "B", BLUE, after=1)
    pdf.paragraph(f"{fields['kind']} · {fields['org']} · {fields['date']}", 10, color=GREY, after=5)
    for kind, content in blocks:
        if kind == "break":
            pdf.add_page()
        elif kind in ("h1", "h2"):
            if pdf.will_page_break(30):  # no heading alone at the foot of a page
                pdf.add_page()
            pdf.paragraph(content, 14 if kind == "h1" else 11.5, "B", BLUE, after=2)
        elif kind in ("item", "number"):
            pdf.paragraph(f"• {content}" if kind == "item" else content, 10.5, indent=5, after=1.5)
        elif kind == "table":
            pdf.rows(content)
        else:
            pdf.paragraph(content, 10.5, after=3)
    pdf.output(path)


def write_html(fields: dict, blocks: list, path: Path) -> None:
    tags = {"h1": "h2", "h2": "h3", "text": "p", "item": "li", "number": "p"}
    title, org = html.escape(fields["title"]), html.escape(fields["org"])
    lines = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<p>{org} · {fields['date']}</p>",
    ]
    for kind, content in blocks:
        if kind == "table":
            lines.append("<table>")
            for number, row in enumerate(content):
                tag = "td" if number else "th"
                lines.append("<tr>" + " ".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
            lines.append("</table>")
        elif kind in tags:
            lines.append(f"<{tags[kind]}>{html.escape(content)}</{tags[kind]}>")
    text = re.sub(r"((?:<li>.*\n)+)", r"<ul>\n\1</ul>\n", "\n".join([*lines, "</body></html>\n"]))
    path.write_text(text, encoding="utf-8")


def page_texts(path: Path) -> list[str]:
    """The text of each page, white space made single; an HTML page counts as one."""
    if path.suffix == ".html":
        texts = [BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").get_text(" ")]
    else:
        texts = [page.extract_text() for page in PdfReader(path).pages]
    return [" ".join(text.split()) for text in texts]


def place(source: str, text: str, pages: list[str]) -> dict:
    """Where `text` stands in `source`: `{"source", "page"}`, without page for HTML.

    Raises ValueError unless exactly one page holds it.
    """
    found = [number for number, page in enumerate(pages, 1) if text in page]
    if len(found) != 1:
        raise ValueError(f"{source}: {text!r} stands on pages {found}, wanted exactly one")
    return {"source": source} if source.endswith(".html") else {"source": source, "page": found[0]}


def question_rows(questions: list[dict], texts: dict[str, list[str]]) -> list[dict]:
    """The rows of questions.jsonl; of each type, those without a `split` are dev and test in turn."""
    rows, seen = [], Counter()
    for question in questions:
        kind = question["type"]
        seen[kind] += 1
        places = [place(source, text, texts[source]) for source, text in question.get("evidence", [])]
        row = {
            "id": f"{kind}-{seen[kind]:02d}",
            "question": question["question"],
            "answer": question.get("answer", ""),
            "aliases": question.get("aliases", []),
            "sources": [p for i, p in enumerate(places) if p not in places[:i]],
            "type": kind,
            "answerable": kind != "unanswerable",
            "split": question.get("split", "dev" if seen[kind] % 2 else "test"),
        }
        if row["answerable"]:
            row["evidence"] = [p | {"text": e[1]} for p, e in zip(places, question["evidence"], strict=True)]
        rows.append(row | {key: question[key] for key in ("compute", "absent") if key in question})
    return rows


def make(content: Path, out: Path) -> None:
    """Write `out/collection/` and, where there are questions, `out/questions.jsonl`."""
    collection = out / "collection"
    collection.mkdir(parents=True, exist_ok=True)
    texts = {}
    for file in sorted(content.glob("*.md")):
        fields, blocks = parse(file.read_text(encoding="utf-8"))
        web = fields.get("format") == "html"
        path = collection / f"{file.stem}{'.html' if web else '.pdf'}"
        (write_html if web else write_pdf)(fields, blocks, path)
        texts[path.name] = page_texts(path)
        print(f"{path.name}: {len(texts[path.name])} pages", file=sys.stderr)
    if (content / "questions.toml").is_file():
        questions = tomllib.loads((content / "questions.toml").read_text(encoding="utf-8"))["question"]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in question_rows(questions, texts)]
        (out / "questions.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the PDFs, HTML pages and questions from a content folder.")
    parser.add_argument("--content", type=Path, default=HERE / "content", help="folder of .md files and questions.toml")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for collection/ and questions.jsonl")
    options = parser.parse_args()
    make(options.content, options.out)
