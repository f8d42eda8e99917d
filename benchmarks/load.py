"""Twenty visitors at once, each with a conversation of its own, against `kit serve rag` and the real models.

    python benchmarks/load.py                      five minutes, 20 users, short budgets
    python benchmarks/load.py --rounds 100         and `kill -9` of a writer of threads, so many times

Each visitor puts a word of its own (a canary) into every question. A canary that shows up in somebody
else's answer or thread is a mix-up; 429 is the service's honest "later", everything else but 200 an
error. Memory is that of the service's process, without the engine. Prints one JSON object, and fails where
anything but 429 went wrong, a word was mixed up or lost, or memory grew by 5% in the second half.
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gevent
import psutil
from locust import HttpUser, constant, task
from locust.env import Environment
from machine import machine

ROOT = Path(__file__).parent.parent
SHORT = 'base = "ci"\nthinking_tokens = 16\nanswer_tokens = 48\nprimary_tokens = 60\nk = 2\nmax_steps = 1\n'
NUMBERS = itertools.count(100)
TESTED = "tests/test_threads.py::test_no_acknowledged_turn_is_lost_by_a_kill"


class Visitor(HttpUser):
    """Asks again and again in one thread."""

    wait_time = constant(1)
    answers, refused, lost, mixed = 0, 0, 0, []  # of all visitors together

    def on_start(self):
        """A canary and a thread of its own."""
        self.canary = f"canary{next(NUMBERS)}"
        self.thread = self.client.post("/threads").json()["id"]

    @task
    def ask(self):
        """One question, and a look at the whole thread."""
        asked = {"question": f"What does a ticket for {self.canary} cost?", "thread": self.thread}
        with self.client.post("/ask", json=asked, catch_response=True) as response:
            if response.status_code == 429:
                response.success()
                Visitor.refused += 1
                gevent.sleep(min(5, int(response.headers["Retry-After"])))
            elif response.status_code == 200:
                Visitor.answers += 1
                self._only_mine(response.text)
                kept = self.client.get(f"/threads/{self.thread}", name="/threads/ID").text
                self._only_mine(kept)
                Visitor.lost += self.canary not in kept

    def _only_mine(self, text: str) -> None:
        Visitor.mixed += [word for word in re.findall(r"canary\d+", text) if word != self.canary]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=0, help="of killing a writer of threads")
    args = parser.parse_args()
    figures = under_load(args.users, args.seconds)
    if args.rounds:
        figures["kill_rounds"] = args.rounds
        figures["kill_lost"] = killed(args.rounds)
    print(json.dumps({"machine": machine(), **figures}, indent=2))
    wrong = figures["errors"] or figures["mixed_up"] or figures["lost"] or figures.get("kill_lost")
    sys.exit(bool(wrong or figures["memory_growth_second_half"] >= 0.05))


def under_load(users: int, seconds: int) -> dict:
    """Requests, what was refused, failed and mixed up, and the memory of the service."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "short.toml"
        profile.write_text(SHORT)
        command = [sys.executable, "-m", "kit", "serve", "rag", "--port", "0", "--profile", str(profile)]
        service = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            url = next(found[0] for line in service.stderr if (found := re.findall(r"http://[\d.:]+", line)))
            environment = Environment(user_classes=[Visitor], host=url)
            runner = environment.create_local_runner()
            runner.start(users, spawn_rate=users)
            memory, process, end = [], psutil.Process(service.pid), time.monotonic() + seconds
            while time.monotonic() < end:
                memory.append(process.memory_info().rss)
                gevent.sleep(5)
            runner.quit()
        finally:
            service.terminate()
            service.wait()
    half = memory[len(memory) // 2 :]
    stats = environment.stats
    return {
        "users": users,
        "seconds": seconds,
        "requests": stats.total.num_requests,
        "answers": Visitor.answers,
        "refused_429": Visitor.refused,
        "errors": {f"{e.method} {e.name}: {e.error}": e.occurrences for e in stats.errors.values()}
        | {told["msg"]: told["count"] for told in runner.exceptions.values()},
        "mixed_up": len(Visitor.mixed),
        "lost": Visitor.lost,
        "memory_mib": round(half[-1] / 2**20),
        "memory_growth_second_half": round(half[-1] / half[0] - 1, 4),
    }


def killed(rounds: int) -> int:
    """Of so many rounds, rounded up to tens, those of the test in which a killed writer lost an acknowledged turn."""
    command = [sys.executable, "-m", "pytest", "-q", TESTED]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(-(-rounds // 10))]
    for run in runs:
        if run.returncode not in (0, 1):  # neither passed nor failed
            sys.exit(f"{TESTED} did not run: {run.stdout[-300:]}{run.stderr[-300:]}")
    return sum(int(n) for run in runs for n in re.findall(r"(\d+) failed", run.stdout))


if __name__ == "__main__":
    main()
