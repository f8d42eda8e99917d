"""How fast the first answer comes, and whether every answer of the demo's questions comes cleanly.

    python benchmarks/first_answer.py                     80 test questions of data/, agentic, one warm process
    python benchmarks/first_answer.py --from-nothing      `make demo` twice and `make test`, on a clean clone

Prints one JSON object. The questions are those of quality.py, and so are the rows: what one of the
two has asked, the other need not ask again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine
from quality import measured, questions

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from-nothing", action="store_true", help="time `make demo` and `make test` instead")
    parser.add_argument("--limit", type=int, default=80, help="only the first N questions")
    args = parser.parse_args()
    figures = (
        from_nothing() if args.from_nothing else measured(questions("test", None)[: args.limit], ["agentic"], "test")
    )
    print(json.dumps({"machine": machine(), **figures}, indent=2, ensure_ascii=False))


def from_nothing() -> dict:
    """`make demo` on a clean clone with an empty home and no cache, then again; then `make test`."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "clone", Path(folder) / "home"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        home.mkdir()
        keep = {
            k: v for k, v in os.environ.items() if not k.startswith(("KIT_", "XDG_", "UV_", "VIRTUAL_ENV", "OLLAMA"))
        }
        environment = {**keep, "HOME": str(home)}
        for name, command in (
            ("demo_from_nothing", "demo"),
            ("demo_again", "demo"),
            ("test_after_demo", "test"),
        ):
            started = time.perf_counter()
            run = subprocess.run(["make", command], cwd=clone, env=environment, stdout=sys.stderr)
            figures[name] = {"seconds": round(time.perf_counter() - started, 1), "status": run.returncode}
    return figures


if __name__ == "__main__":
    main()
