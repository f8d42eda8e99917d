"""The one direction of imports, and what a bare start may load."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "kit"
ALLOWED = {
    "config": set(),
    "pdf": {"config"},
    "words": {"corpus"},
    "ingest": {"config", "corpus", "pdf", "words"},
    "download": {"config"},
    "build": {"config", "download"},
    "engine": {"config", "download", "build"},
    "models": {"config", "download", "engine"},
    "messages": {"config"},
    "llm": {"config", "messages"},
    "corpus": {"config", "pdf"},
    "index": {"config", "ingest", "words"},
    "retriever": {"config", "index"},
    "evidence": {"retriever"},
    "comparison": {"evidence", "messages"},
    "reasoner": {"comparison", "evidence", "llm", "messages", "retriever"},
    "agent": {"config", "evidence", "llm", "retriever", "reasoner"},
    "chat": {"config", "agent", "llm", "retriever"},
    "web": {"agent", "chat", "config", "llm"},
    "threads": {"config"},
    "client": {"config"},
    "printed": {"agent", "chat", "retriever"},
    "queries": {"printed"},
    "service": {"agent", "config", "llm", "retriever", "threads"},
    "distill": {"config", "corpus", "evaluation", "evidence", "llm", "messages", "reasoner", "retriever"},
    "finetune": {"config", "download", "engine", "models"},
    "forcing": {"config"},
    "doctor": {"config", "engine", "models", "index"},
    "evaluation": {"config"},
}


def imports(module: Path) -> set[str]:
    """The kit's modules that `module` imports, at the top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kit"):
            rest = node.module.removeprefix("kit").removeprefix(".")
            found |= {rest} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("kit.") for a in node.names if a.name.startswith("kit.")}
    return found - {"__version__"}


def test_the_import_table_is_true():
    for module in PACKAGE.glob("*.py"):
        if module.stem not in ("__init__", "__main__", "cli", "commands"):
            assert imports(module) <= ALLOWED[module.stem], module.name


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom kit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'chromadb', 'smolagents', 'langchain_community') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("[]\n")


def test_only_config_reads_the_environment():
    for module in PACKAGE.glob("*.py"):
        if module.stem != "config":
            text = module.read_text(encoding="utf-8")
            assert "os.environ" not in text and "getenv" not in text, module.name
