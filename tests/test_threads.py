"""Conversations in SQLite, and what a `kill -9` leaves of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kit.threads import NoSuchThread, Threads

WRITER = """
import sys
from kit.threads import Threads
threads = Threads(sys.argv[1])
id = threads.new("")["id"]
print(id, flush=True)
for number in range(100_000):
    threads.add("", id, f"question {number}", {"answer": "x" * 2000})
    print(number, flush=True)
"""


@pytest.fixture
def threads(tmp_path) -> Threads:
    return Threads(tmp_path / "threads.sqlite")


def test_turns_are_kept_in_order_and_survive_a_restart(tmp_path, threads):
    id = threads.new("ann")["id"]
    threads.add("ann", id, "Who?", {"answer": "Mattias Öberg"})
    threads.add("ann", id, "When?", {"answer": "2022"})
    again = Threads(tmp_path / "threads.sqlite")
    assert [turn["question"] for turn in again.turns("ann", id)] == ["Who?", "When?"]
    assert again.turns("ann", id)[0]["answer"] == {"answer": "Mattias Öberg"}
    (thread,) = again.of("ann")
    assert (thread["id"], thread["turns"], thread["title"]) == (id, 2, "Who?")


def test_the_thread_of_another_is_not_there(threads):
    id = threads.new("ann")["id"]
    for call in (threads.turns, threads.delete, lambda owner, id: threads.add(owner, id, "?", {})):
        with pytest.raises(NoSuchThread):
            call("bob", id)
    assert threads.of("bob") == [] and threads.turns("ann", id) == []


def test_what_is_forgotten_is_gone(threads):
    id = threads.new("ann")["id"]
    threads.add("ann", id, "Who?", {})
    threads.delete("ann", id)
    assert threads.of("ann") == []
    with pytest.raises(NoSuchThread):
        threads.turns("ann", id)


@pytest.mark.parametrize("round", range(10))
def test_no_acknowledged_turn_is_lost_by_a_kill(tmp_path, round):
    path = tmp_path / "threads.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        id = writer.stdout.readline().strip()
        while int(writer.stdout.readline()) < 5 * round:
            pass
        time.sleep(0.003 * round)
        os.kill(writer.pid, signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split()]
    kept = [turn["question"] for turn in Threads(path).turns("", id)]
    assert kept == [f"question {number}" for number in range(len(kept))]
    assert len(kept) > max([5 * round, *told])
