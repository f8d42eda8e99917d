"""Conversations in SQLite, and what a `kill -9` leaves of them."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kit.client import Client
from kit.config import KitError
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


SERVICE = """
import sys
sys.path.insert(0, sys.argv[2])
from test_service import Desk
from kit import service
from kit.threads import Threads
app = service.rag(Desk(), Threads(sys.argv[1]), waiting=50)
service.run(app, "127.0.0.1", 0, lambda line: print(line, flush=True))
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


def test_a_broken_file_is_one_sentence(tmp_path, threads):
    (tmp_path / "broken.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(KitError, match="cannot be read or written"):
        Threads(tmp_path / "broken.sqlite")
    for file in tmp_path.glob("threads.sqlite*"):
        file.write_bytes(b"no database at all" * 100)
    for call in (lambda: threads.new("ann"), lambda: threads.of("ann"), lambda: threads.check("ann", "x")):
        with pytest.raises(KitError, match="disk has room"):
            call()


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


def test_no_acknowledged_answer_of_the_service_is_lost_by_a_kill(tmp_path):
    path, told = tmp_path / "threads.sqlite", []
    command = [sys.executable, "-c", SERVICE, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        url = re.search(r"http://[\d.:]+", service.stdout.readline())[0]

        def ask(name: str) -> None:
            client = Client(url)
            thread = client.new_thread()["id"]
            with suppress(KitError):  # the service is gone
                for number in range(1000):
                    question = f"{name}, question {number}"
                    client.ask(question, thread)
                    told.append((thread, question))

        askers = [threading.Thread(target=ask, args=(name,)) for name in ("ann", "bob", "eve")]
        for asker in askers:
            asker.start()
        while len(told) < 6:
            time.sleep(0.01)
        os.kill(service.pid, signal.SIGKILL)
        for asker in askers:
            asker.join()
    kept = Threads(path)
    for thread, question in told:
        assert question in [turn["question"] for turn in kept.turns("", thread)]
