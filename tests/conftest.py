import hashlib
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from scripted import ScriptedServer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture
def scripted():
    """A function that starts a scripted HTTP server, closed after the test."""
    servers = []

    def start(*script: dict) -> ScriptedServer:
        servers.append(ScriptedServer(list(script)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class FakeEmbedder:
    """A bag of words, hashed into a unit vector: equal words, near vectors. A pure function, but for its count."""

    def __init__(self, name: str = "fake", dimension: int = 64, seconds: float = 0.0):
        self.name, self.dimension, self.seconds = name, dimension, seconds
        self.texts = 0  # embedded so far

    def encode(self, texts: list[str], is_query: bool = False) -> np.ndarray:
        self.texts += len(texts)
        time.sleep(self.seconds * len(texts))
        vectors = np.full((len(texts), self.dimension), 1e-6, dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % self.dimension] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


def write_pdf(path: Path, pages: list[str], password: str | None = None, algorithm: str = "RC4-128") -> Path:
    """A PDF with one page for each text; an empty text gives a page without any, as a scan has."""
    from fpdf import FPDF
    from pypdf import PdfReader, PdfWriter

    pdf = FPDF()
    pdf.set_font("Helvetica", size=11)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 6, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    pdf.output(str(path))
    if password is not None:
        writer = PdfWriter(clone_from=PdfReader(path))
        writer.encrypt(password, "owner", algorithm=algorithm)
        writer.write(path)
    return path


@pytest.fixture(scope="module")
def browser():
    """The Chromium of this machine, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()
