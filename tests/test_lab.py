"""The chat of notebook 4, driven in JupyterLab in a real browser, over hand-written models."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nbformat
import pytest
from conftest import in_a_browser
from playwright.sync_api import TimeoutError, expect

CELL = f"""
import sys
from dataclasses import replace
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fakes import FakeRetriever, Typing, call, found, hit
from kit.agent import Assistant
from kit.chat import Panel
from kit.config import PROFILES

stated = "The rent is 48,000 euros."
first = ["The first sentence of the passage states it." + " It does." * 30, *found("48,000", stated)]
stopped, last = ["word " * 400], ["Short.", *found("<b>12</b>", stated)]
reasoner = Typing(*first, *stopped, *last)
primary = Typing(*[call(f"rent {{n}}") for n in range(3)])
retriever = FakeRetriever([hit("a", stated)])
profile = replace(PROFILES["ci"], stand_in=False)  # so each answer takes the three calls of `found`
Panel(Assistant(profile, primary, reasoner, retriever))
"""


@pytest.fixture
def lab(tmp_path, free_port):
    """The address of a JupyterLab that knows nothing of this machine's settings, with two notebooks alike."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in ("chat", "another"):
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={free_port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    url = f"http://127.0.0.1:{free_port}"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | folders)
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                httpx.get(f"{url}/api", trust_env=False)
                break
            except httpx.HTTPError:
                assert server.poll() is None, (tmp_path / "log").read_text()
        yield url
    finally:
        server.terminate()
        server.wait(20)


def opened(page, address):
    """Open the notebook at `address`, run its cell, and return the panel's text box.

    JupyterLab can forget a cell that is run while it still connects to a kernel it already calls idle:
    the prompt is empty again, and nothing ever runs. Such a cell is run again.
    """
    page.set_default_timeout(90_000)
    page.goto(address)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
    cell, question = page.locator(".jp-Notebook .jp-CodeCell").first, page.get_by_placeholder("Ask the documents")
    for _ in range(30):
        if cell.locator(".jp-InputPrompt").inner_text() == "[ ]:":
            cell.locator(".cm-content").click()
            page.keyboard.press("Shift+Enter")
        try:
            question.wait_for(timeout=5_000)
            break
        except TimeoutError:
            continue
    expect(question).to_be_visible()
    return question


@pytest.mark.ollama  # it needs no model, but the half minute that JupyterLab takes to open
@in_a_browser
def test_the_panel_streams_stops_and_clears(lab, browser):
    page = browser.new_context().new_page()
    question = opened(page, f"{lab}/lab/tree/chat.ipynb")
    question.fill("What is the rent?")
    question.press("Enter")
    page.get_by_text(re.compile("… The first sentence")).wait_for()  # what is written shows while it is written
    page.get_by_text("48,000", exact=True).wait_for()
    quote = page.get_by_text("lease.pdf, page 1: “The rent is 48,000 euros”")
    assert not quote.is_visible()
    page.get_by_text("sources and steps").click()
    quote.wait_for()

    question.fill("A long one?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text(re.compile("… word word")).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped.", exact=True).wait_for()

    question.fill("<script>window.caught = 1</script>")
    question.press("Enter")
    page.get_by_text("<b>12</b>", exact=True).wait_for()
    page.get_by_text("<script>window.caught = 1</script>", exact=True).first.wait_for()
    assert not page.evaluate("window.caught")

    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.get_by_text("Stopped.", exact=True)).to_have_count(0)
    page.context.close()


@pytest.mark.ollama  # for the same half minute
@in_a_browser
def test_two_people_do_not_see_each_other(lab, browser):
    pages = [browser.new_context().new_page() for _ in range(2)]
    for page, name in zip(pages, ("chat", "another"), strict=True):  # /doc: without the tabs that all share
        opened(page, f"{lab}/doc/tree/{name}.ipynb").fill(f"What is the rent of {name}?")
    for page in pages:
        page.get_by_placeholder("Ask the documents").press("Enter")
        page.get_by_text("48,000", exact=True).wait_for()
    for page, own, foreign in zip(pages, ("chat", "another"), ("another", "chat"), strict=True):
        expect(page.get_by_text(f"What is the rent of {own}?")).not_to_have_count(0)
        expect(page.get_by_text(f"What is the rent of {foreign}?")).to_have_count(0)
        page.context.close()
