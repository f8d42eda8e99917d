"""Conversations in SQLite: what was acknowledged survives a restart, and a `kill -9`.

A thread belongs to an owner; whoever asks for the thread of another is told that there is none.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kit.config import KitError

TABLES = """
create table if not exists threads (id text primary key, owner text not null, created real not null);
create table if not exists turns (
    number integer primary key, thread text not null references threads on delete cascade,
    question text not null, answer text not null, created real not null
);
create index if not exists turns_of_thread on turns (thread);
"""


class NoSuchThread(KeyError):
    """There is no such thread, or it is somebody else's."""

    def __str__(self) -> str:
        return f"There is no thread {self.args[0]}."


class Threads:
    """Threads in the file `path`, with a connection for each call, so that any thread of a server may call.

    Every method raises `KitError` for a file that SQLite cannot read or write.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.execute("pragma journal_mode = wal")
            db.executescript(TABLES)

    def new(self, owner: str) -> dict:
        """A new thread, as `of` lists it; its id is 32 random hex digits."""
        id, created = uuid.uuid4().hex, time.time()
        with self._writing() as db:
            db.execute("insert into threads values (?, ?, ?)", (id, owner, created))
        return {"id": id, "created": created, "turns": 0, "title": None}

    def of(self, owner: str) -> list[dict]:
        """`{id, created, turns, title}` of the owner's threads, the latest first; the title is the first question."""
        select = (
            "select id, t.created, count(number), "
            "(select question from turns where thread = id order by number limit 1) "
            "from threads t left join turns on thread = id where owner = ? group by id order by t.created desc"
        )
        with self._open() as db:
            rows = db.execute(select, (owner,)).fetchall()
        return [dict(zip(("id", "created", "turns", "title"), row, strict=True)) for row in rows]

    def check(self, owner: str, id: str) -> None:
        """Raises `NoSuchThread` where the owner has none of this id."""
        with self._open() as db:
            self._own(db, owner, id)

    def turns(self, owner: str, id: str, last: int = -1) -> list[dict]:
        """`{question, answer, created}` of the `last` turns (-1: all), the oldest first.

        `answer` is what `add` was given. Raises `NoSuchThread`, as `add` and `delete` do.
        """
        with self._open() as db:
            self._own(db, owner, id)
            select = "select question, answer, created from turns where thread = ? order by number desc limit ?"
            rows = db.execute(select, (id, last)).fetchall()
        return [
            {"question": asked, "answer": json.loads(answer), "created": made} for asked, answer, made in rows[::-1]
        ]

    def add(self, owner: str, id: str, question: str, answer: dict) -> None:
        """Append a turn; it is on the disk when this returns."""
        with self._writing() as db:
            self._own(db, owner, id)
            db.execute(
                "insert into turns (thread, question, answer, created) values (?, ?, ?, ?)",
                (id, question, json.dumps(answer), time.time()),
            )

    def delete(self, owner: str, id: str) -> None:
        """Forget a thread and all its turns."""
        with self._writing() as db:
            self._own(db, owner, id)
            db.execute("delete from threads where id = ?", (id,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as db:
                db.execute("pragma foreign_keys = on")
                db.execute("pragma synchronous = full")  # a commit waits for the disk
                yield db
        except sqlite3.Error as error:
            raise KitError(
                f"The conversations in {self.path} cannot be read or written ({error}); see that the disk has room and "
                "the file is yours."
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db, db:  # all of it or nothing
            yield db

    @staticmethod
    def _own(db: sqlite3.Connection, owner: str, id: str) -> None:
        if not db.execute("select 1 from threads where id = ? and owner = ?", (id, owner)).fetchone():
            raise NoSuchThread(id)
