"""What a figure was measured on: every benchmark prints it beside its results."""

import os
import platform
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import psutil

from kit.config import GIB, MODELFILES

PACKAGES = ("smolagents", "chromadb", "sentence-transformers", "ollama")


def machine() -> dict:
    """Processor, cores, memory, versions, the SHA-256 of the pinned weights, and the commit."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    weights = tomllib.loads((MODELFILES / "sources.toml").read_text())["weights"]
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "weights_sha256": {name: row["sha256"] for name, row in weights.items() if "sha256" in row},
        "commit": commit.stdout.strip(),
    }
