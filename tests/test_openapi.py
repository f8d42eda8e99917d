"""Requests made from the services' own OpenAPI documents (Schemathesis): none may break a service."""

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.checks import not_a_server_error
from test_service import apps, index_of

from kit.client import PORTS
from kit.threads import Threads

HOST = "127.0.0.1"  # the services answer to names of this machine only


@pytest.fixture(scope="module")
def threads(tmp_path_factory) -> Threads:
    return Threads(tmp_path_factory.mktemp("kept") / "threads.sqlite")


@pytest.fixture(scope="module")
def documents(tmp_path_factory, threads) -> dict:
    """The OpenAPI schema of each service, over hand-written models."""
    retriever = index_of(tmp_path_factory.mktemp("services"), {"comets.md": "A comet has a tail."})
    asked, served = {"Host": HOST}, apps(retriever, threads)
    return {name: schemathesis.openapi.from_asgi("/openapi.json", app, headers=asked) for name, app in served.items()}


def test_what_is_sent_is_shown_by_example(documents):
    for name, record in (("vector-store", "Searching"), ("retriever", "Searching"), ("rag", "Asking")):
        assert "examples" in str(documents[name].raw_schema["components"]["schemas"][record]), name


@pytest.mark.parametrize("name", PORTS)
def test_no_request_breaks_a_service(documents, threads, name):
    for found in documents[name].get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy(), there=strategies.booleans())
        @hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
        def answered(case, there):
            if there:
                name_a_thread(case, threads.new("")["id"])
            case.call_and_validate(base_url=f"http://{HOST}", checks=(not_a_server_error,))

        answered()


def name_a_thread(case, id: str) -> None:
    """Let the request be about a thread that is there, where it is about one: no generator guesses an id."""
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = id
    if isinstance(case.body, dict) and "question" in case.body:
        case.body["thread"] = id


def test_requests_reach_threads_that_are_there(documents, threads):
    kept = threads.new("")["id"]
    case = documents["rag"]["/threads/{id}"]["GET"].Case(path_parameters={"id": "0" * 32})
    assert case.call(base_url=f"http://{HOST}").status_code == 404
    name_a_thread(case, kept)
    assert case.call(base_url=f"http://{HOST}").status_code == 200
