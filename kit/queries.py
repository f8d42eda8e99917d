"""What `kit query` can ask of the services.

Each question is asked through `kit.client`, with the arguments that `kit.cli` has read, and the profile.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from kit import printed


@dataclass(frozen=True)
class Query:
    """What `kit query` asks of `service`: its argument, what it is, how it is asked, and how it is shown."""

    service: str
    text: str
    about: str
    ask: Callable
    show: Callable[[dict], str]


def _found(client, args, profile) -> dict:
    return client.search(args.text, args.k or profile.k)


def _forget(client, thread: str) -> dict:
    client.clear(thread)
    return {"cleared": thread}


def _written(kind: str, data: dict) -> None:
    """What a service does and writes, for somebody who watches."""
    if sys.stderr.isatty():
        print(data["text"] if kind == "token" else f"\n… {data}\n", end="", file=sys.stderr, flush=True)


QUERIES = {
    "vector-store": Query("vector-store", "QUERY", "Passages near to a query by meaning.", _found, printed.passages),
    "passages": Query(
        "vector-store",
        "SOURCE",
        "Every passage of a source, as the index holds them.",
        lambda client, args, _: client.passages(args.text, args.page),
        printed.passages,
    ),
    "retriever": Query("retriever", "QUERY", "Passages by meaning and by words.", _found, printed.passages),
    "documents": Query(
        "retriever",
        "QUERY",
        "Whole documents, found by their passages.",
        lambda client, args, profile: client.documents(args.text, args.k or profile.k, args.n),
        printed.passages,
    ),
    "rag": Query(
        "rag",
        "QUESTION",
        "An answer, with its sources; what is done and written shows on a terminal.",
        lambda client, args, _: client.ask(args.text, args.thread, _written),
        printed.answer,
    ),
    "new-thread": Query(
        "rag",
        "",
        "Begin a conversation; prints its id, for `kit query rag --thread`.",
        lambda client, *_: client.new_thread(),
        lambda result: result["id"],
    ),
    "threads": Query(
        "rag",
        "",
        "The conversations that are kept.",
        lambda client, *_: {"threads": client.threads()},
        lambda result: "\n".join(map(printed.thread, result["threads"])),
    ),
    "history": Query(
        "rag",
        "ID",
        "The questions and answers of a conversation.",
        lambda client, args, _: {"turns": client.history(args.text)},
        lambda result: "\n\n".join(f"> {t['question']}\n{t['answer']['answer']}" for t in result["turns"]),
    ),
    "clear": Query(
        "rag",
        "ID",
        "Forget a conversation.",
        lambda client, args, _: _forget(client, args.text),
        lambda result: f"The thread {result['cleared']} is forgotten.",
    ),
}
