"""The notebooks: their frame, their functions, and every one of them run from top to bottom on the real models.

Each is run twice: by nbval with its committed defaults, which compares the cells tagged
`nbval-check-output` with what is stored, and by papermill with its smallest parameters.
"""

import ast
import os
import re
import string
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from kit import engine, evaluation
from kit.config import load_profile
from kit.evidence import find_quote
from kit.retriever import Hit

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SMALLEST = {
    "01": {"LENGTHS": [500, 1500], "WINDOWS": [1024, 4096]},
    "02": {"CHUNK_SIZES": [300], "SUMMARIES": 1},
    "03": {"K": 3},
    "04": {"K": 3, "TRIES": 4},
    "05": {"LIVE": 2, "MODES": ["rag", "agentic"], "JUDGED": 4},
    "06": {"COUNT": 1, "TRACED": 1, "K": 3},
    "07": {"ROWS": 2, "BUDGETS": [0, 16]},
    "08": {"LIVE": 1, "K": 3},
    "09": {"PASSAGES": 200, "WORKERS": [1], "K": 3},
}
STARTED = float(os.environ.get("TEST_STARTED", time.time()))  # `make test` says when it began
WIDGET = "application/vnd.jupyter.widget-view+json"
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def numbered(number: str) -> Path:
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    return path


def definitions(source: str) -> list:
    """The functions and classes at the top of some code."""
    return [node for node in ast.parse(source).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_every_notebook_has_its_smallest_parameters():
    assert [path.name[:2] for path in NOTEBOOKS] == sorted(SMALLEST)


@every_notebook
def test_the_frame_is_complete(path):
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert re.match(rf"# {int(path.name[:2])} · .+\n\n\S", prose), "a title, and a promise below it"
    for part in ("**You will learn**", "**You need**", "**Time**", "## Check what you have seen"):
        assert part in prose, part
    for part in ("## What you should have seen", "## Exercises", "## Where to go next"):
        assert part in prose, part
    sources = [cell.source for cell in cells(path)]
    assert sum("parameters" in tags(cell) for cell in cells(path)) == 1
    assert sum(len(re.findall(r"^\s*assert ", source, re.M)) for source in sources) >= 5
    assert any("from kit" in source for source in sources) and "from the kit" in prose
    assert "profile {profile.name}" in sources[0] and "engine.running(profile, keep=True)" in sources[0]
    assert "DOCUMENTS = " in next(cell.source for cell in cells(path) if "parameters" in tags(cell))
    assert re.search(r"\*\*Time\*\*: [^.]*\d+ minutes", prose), "each says how long it takes"
    assert sum("solution" in tags(cell) for cell in cells(path)) >= 2
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in cells(path) if "solution" in tags(cell))


@every_notebook
def test_it_was_run_from_top_to_bottom_and_holds_nothing_it_should_not(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert all(cell.source.strip() for cell in notebook.cells)
    assert not any(output.output_type == "error" for cell in cells(path) for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    paths = ("/home/", "/tmp/", "/root/", "/work/", "/opt/", "/mnt/", "/Users/", "C:\\\\")
    for unwanted in ("!pip", "%pip", "share=True", "http://127", *paths):
        assert unwanted not in text, unwanted
    views = {o.data[WIDGET]["model_id"] for cell in cells(path) for o in cell.outputs if WIDGET in o.get("data", {})}
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    assert views <= set(state) and bool(views) == bool(state), "a widget is stored with what it showed, or not at all"


@every_notebook
def test_at_least_three_cells_are_compared_for_real(path):
    compared = [cell for cell in cells(path) if "nbval-check-output" in tags(cell)]
    unseen = {"image/png", "image/jpeg", WIDGET}  # what nbval passes over
    seen = [cell for cell in compared if any(set(o.get("data", {"text": ""})) - unseen for o in cell.outputs)]
    assert len(seen) >= 3


@every_notebook
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", "\n".join(cell.source for cell in cells(path, "markdown"))):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@every_notebook
def test_what_the_kit_has_is_not_defined_again(path):
    wiring = ("cli.py", "commands.py", "printed.py")  # functions are named after what is typed and shown
    files = [module for module in (ROOT / "kit").glob("*.py") if module.name not in wiring]
    modules = [module.read_text(encoding="utf-8") for module in files]
    held = {node.name for source in modules for node in definitions(source)}
    own = {node.name for cell in cells(path) for node in definitions(cell.source)}
    assert not own & held


def test_the_kernel_of_the_notebooks_is_this_environment():
    names = {nbformat.read(path, as_version=4).metadata.kernelspec.name for path in NOTEBOOKS}
    assert names == {"python3"}
    argv = KernelSpecManager().get_kernel_spec("python3").argv
    assert argv[0].startswith("python") or Path(argv[0]).samefile(sys.executable), "Jupyter puts its own in"
    assert "-r requirements.lock" in (ROOT / "environment.yml").read_text()


@pytest.mark.parametrize("framework", ["LangGraph", "Pydantic AI"])
def test_each_framework_takes_at_most_80_lines(framework):
    heading, lines = "", {}
    for cell in nbformat.read(numbered("08"), as_version=4).cells:
        if cell.cell_type == "markdown":
            heading = next((line for line in cell.source.splitlines() if line.startswith("## ")), heading)
        else:
            lines[heading] = lines.get(heading, 0) + sum(bool(line.strip()) for line in cell.source.splitlines())
    (count,) = (count for heading, count in lines.items() if heading.startswith(f"## {framework}"))
    assert 10 < count <= 80


def function(number: str, name: str, **known):
    """A function that a notebook defines, taken out of its cell; `known` are the names that it needs."""
    nodes = [node for cell in cells(numbered(number)) for node in definitions(cell.source)]
    (node,) = (node for node in nodes if node.name == name)
    exec(compile(ast.Module([node], []), number, "exec"), known)
    return known[name]


def test_the_quote_check_by_hand_agrees_with_the_kit():
    stands_in = function("03", "stands_in")
    hit = Hit("a", "lease.pdf", 1, 1.0, "The rent is\n900 euros. It is due on the first.")
    for quote in ("The rent is 900 euros", "the rent is 900 EUROS.", "The rent is 800 euros", "", "due on the first"):
        assert bool(stands_in(quote, [hit])) == bool(find_quote(hit.text, quote)), quote


def test_the_rank_by_hand_agrees_with_the_kit():
    rank = function("02", "rank")
    questions = [
        {"id": str(n), "question": str(n), "answerable": True, "sources": [{"source": "a.pdf", "page": page}]}
        for n, page in enumerate((1, 2, 3, 9))
    ]
    hits = [Hit(str(page), "a.pdf", page, 1 / page, "") for page in (2, 1, 3)]
    kit = evaluation.retrieval(questions, lambda query, k: hits[:k], 3)
    ranks = [rank([(h.source, h.page) for h in hits], {("a.pdf", q["sources"][0]["page"])}) for q in questions]
    assert ranks == [2, 1, 3, 0]
    assert kit["mrr"] == pytest.approx(sum(1 / place for place in ranks if place) / 4, abs=1e-3)
    assert kit["hit@3"] == pytest.approx(sum(place > 0 for place in ranks) / 4)


def test_the_measures_by_hand_agree_with_the_kit():
    plain = function("05", "plain", re=re, string=string)
    exact = function("05", "exact", plain=plain)
    token_f1 = function("05", "token_f1", plain=plain, Counter=Counter)
    for said, gold in (
        *(("EUR 38.00", "eur 38.00"), ("The lift.", "a lift"), ("A lift and a ramp", "a lift"), ("eight", "nine")),
        *(("Eight years, it says", "nine years"), ("ja, ja", "ja"), ("1,204", "1204"), ("Öberg", "oberg")),
    ):
        question = {"answer": gold, "aliases": [], "sources": [], "answerable": True}
        kit = evaluation.score(question, {"answer": said, "answered": True, "sources": []})
        assert (exact(said, gold), token_f1(said, gold)) == (kit["em"], pytest.approx(kit["f1"])), said


def nbval(path: Path) -> subprocess.CompletedProcess:
    """The notebook in a fresh kernel, compared with its stored outputs where a cell asks for it."""
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    command += ["--nbval-cell-timeout=900", "--timeout=0", "-x", "--rootdir", str(path.parent), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_wrong_number_and_an_exception_turn_the_run_red(tmp_path):
    notebook = nbformat.read(numbered("02"), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if {"solution", "nbval-check-output"} <= set(tags(cell))]
    (cell,) = notebook.cells
    copy = tmp_path / "copy.ipynb"
    nbformat.write(notebook, copy)
    assert nbval(copy).returncode == 0
    right = cell.outputs[0].text
    cell.outputs[0].text = right.replace("0", "7", 1)
    nbformat.write(notebook, copy)
    assert nbval(copy).returncode == 1, "a changed number"
    cell.outputs[0].text, cell.source = right, cell.source + "\nraise ValueError"
    nbformat.write(notebook, copy)
    assert nbval(copy).returncode == 1, "an exception, for nbval"
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook(copy, None, progress_bar=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A KIT_HOME with the real engine and weights, and no index; a server runs in it."""
    profile = load_profile("ci")
    home = tmp_path_factory.mktemp("home")
    for name in ("engine", "weights", "models"):
        if (profile.home / name).exists():
            (home / name).symlink_to(profile.home / name)
    with engine.running(profile) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIT_HOME", str(home))
        patch.setenv("KIT_PROFILE", "ci")
        patch.setenv("OLLAMA_HOST", server.url)
        yield home


@pytest.fixture
def in_time():
    """Skips, in sight, what a slow machine has no time for: one with other work slows a model down fourfold."""
    if time.time() - STARTED > 45 * 60:
        pytest.skip("this machine is slow: the tests have taken 45 minutes so far")


def at_once(number: str, early: str, **parameters):
    """A notebook to execute in one kernel: a cell too early, whatever it raises, then all cells, then all again."""
    notebook = nbformat.read(numbered(number), as_version=4)
    for cell in notebook.cells:
        if "parameters" in tags(cell):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    (first,) = (deepcopy(cell) for cell in notebook.cells if early in cell.source)
    first.metadata["tags"] = ["raises-exception"]
    notebook.cells = [first, *notebook.cells, *deepcopy(notebook.cells)]
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position}"
    return notebook


@pytest.mark.ollama
@pytest.mark.timeout(1800)
def test_run_out_of_order_and_then_twice_in_one_kernel(home, in_time):
    notebook = at_once("02", "told(index.ingest([DOCUMENTS]))", CHUNK_SIZES=[300], SUMMARIES=0)
    run = {"resources": {"metadata": {"path": str(ROOT / "notebooks")}}, "kernel_name": "python3", "timeout": 900}
    NotebookClient(notebook, **run).execute()
    assert notebook.cells[0].outputs[0].ename == "NameError", "that cell needs those before it"


@pytest.mark.ollama
@pytest.mark.timeout(600)
def test_two_kernels_at_once_over_one_index(home, in_time, tmp_path):
    notebook = nbformat.read(numbered("03"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (last,) = (place for place, cell in enumerate(code) if "passages in the index" in cell.source)
    code[1].source += f"\nINDEX = {str(tmp_path / 'index')!r}"
    notebook.cells = code[: last + 1]

    def run(_) -> str:
        """What the cell said that reads the documents, or why it stopped."""
        mine, folder = deepcopy(notebook), {"metadata": {"path": str(ROOT / "notebooks")}}
        NotebookClient(mine, kernel_name="python3", timeout=300, allow_errors=True, resources=folder).execute()
        said = [output for output in mine.cells[-1].outputs if output.get("name") != "stderr"]  # warnings
        return "".join(output.get("text", output.get("evalue", "")) for output in said)

    with ThreadPoolExecutor(2) as pool:
        first = list(pool.map(run, range(2)))
    assert all(re.search("passages in the index|Another process is writing", said) for said in first), first
    (whole,) = {said for said in first if "Another" not in said}
    assert run(0) == whole, "the next run is clean, and finds the same"


@pytest.mark.ollama
@every_notebook
def test_without_an_engine_it_says_what_to_type_and_stops(path, tmp_path, monkeypatch, free_port):
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("KIT_PROFILE", "ci")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port}")
    with pytest.raises(papermill.PapermillExecutionError, match="kit setup") as stopped:
        papermill.execute_notebook(path, None, cwd=path.parent, progress_bar=False, kernel_name="python3")
    assert stopped.value.exec_count == 1


# The small runs come first, so that every notebook is run where a machine is too slow for all of both.
@pytest.mark.ollama
@pytest.mark.timeout(1800)
@every_notebook
def test_with_its_smallest_parameters(path, home, in_time, tmp_path):
    papermill.execute_notebook(
        path, tmp_path / path.name, SMALLEST[path.name[:2]], cwd=path.parent, progress_bar=False, kernel_name="python3"
    )


@pytest.mark.ollama
@pytest.mark.timeout(1800)
@every_notebook
def test_with_its_defaults(path, home, in_time):
    run = nbval(path)
    assert run.returncode == 0, run.stdout[-5000:]
