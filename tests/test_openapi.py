"""Requests made from the services' own OpenAPI documents (Schemathesis): none may break a service."""

import json

import hypothesis
import pytest
import schemathesis
from conftest import FakeEmbedder
from schemathesis.checks import not_a_server_error
from test_service import Desk

from kit import service
from kit.index import Index
from kit.retriever import Retriever
from kit.threads import Threads

HOST = "127.0.0.1"  # the services answer to names of this machine only


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> dict:
    """The OpenAPI schema of each service, over hand-written models."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "rows.jsonl").write_text(json.dumps({"title": "Comets", "text": "A comet has a tail."}))
    with Index.create(folder / "index", FakeEmbedder(), 200, 20) as index:
        index.ingest([folder / "rows.jsonl"])
    retriever = Retriever(Index.open(folder / "index", FakeEmbedder()))
    apps = {
        "store": service.vector_store(retriever),
        "retriever": service.retrieval(retriever),
        "rag": service.rag(Desk(), Threads(folder / "threads.sqlite")),
    }
    asked = {"Host": HOST}
    return {name: schemathesis.openapi.from_asgi("/openapi.json", app, headers=asked) for name, app in apps.items()}


def test_what_is_sent_is_shown_by_example(documents):
    for name, record in (("store", "Searching"), ("retriever", "Searching"), ("rag", "Asking")):
        assert "examples" in str(documents[name].raw_schema["components"]["schemas"][record]), name


@pytest.mark.parametrize("name", ["store", "retriever", "rag"])
def test_no_request_breaks_a_service(documents, name):
    for found in documents[name].get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
        def answered(case):
            case.call_and_validate(base_url=f"http://{HOST}", checks=(not_a_server_error,))

        answered()
