"""The command line from outside: exit status, one sentence, and nothing else on standard output."""

import errno
import json
from contextlib import nullcontext

import pytest
from test_service import Desk, apps, index_of, served

from kit import agent, cli, distill, evaluation, service
from kit.cli import main
from kit.config import service_tokens
from kit.threads import Threads


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in ("KIT_PROFILE", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "home"))
    return tmp_path


def run(capsys, *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    return end.value.code, *capsys.readouterr()


def test_the_names_it_lists_are_those_of_the_modules_that_it_imports_late():
    assert cli.ASK_MODES == agent.MODES
    assert cli.KINDS == distill.KINDS


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["ask"],
        ["ask", "q", "--mode", "magic"],
        ["search", "q", "--k", "0"],
        ["search", "q", "--k", "five"],
        ["search", "q", "--profile", "huge"],
        ["search", "q", "--profile", "missing.toml"],
        ["evaluate", "--questions", "q.jsonl", "--out", "o", "--modes", "rag,magic"],
        ["serve", "everything"],
        ["distill"],
        ["finetune", "t", "--out", "o", "--epochs", "0"],
        ["finetune", "t", "--out", "o", "--device", "tpu"],
        ["distill", "questions", "p", "--out", "o", "--kinds", "odd"],
        ["query"],
        ["query", "history"],
    ],
)
def test_wrong_use_is_status_2(capsys, argv):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "") and err.strip()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["search", "rent"], "There is no index in"),
        (["serve", "retriever"], "There is no index in"),
        (["serve", "rag", "--host", "0.0.0.0"], "set KIT_TOKEN"),
        (["query", "threads", "--url", "http://127.0.0.1:9"], "start one with `kit serve`"),
        (["query", "threads", "--url", "http://[::1"], "start one with `kit serve`"),
        (["ask", "Who?"], "There is no index in"),
        (["ingest", "nowhere"], "nowhere"),
        (["ingest", "{empty}"], "no document"),
        (["evaluate", "--questions", "nowhere.jsonl", "--out", "{empty}"], "nowhere.jsonl cannot be read"),
        (["ingest", "{empty}", "--chunk-size", "10", "--chunk-overlap", "10"], "cannot overlap"),
    ],
)
def test_failed_work_is_status_1_and_one_sentence(capsys, home, argv, said):
    (home / "empty").mkdir()
    argv = [a.replace("{empty}", str(home / "empty")) for a in argv]
    status, out, err = run(capsys, *argv, "--profile", "ci")
    assert (status, out) == (1, "")
    assert err.startswith("kit: ") and said in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_full_disk_is_one_sentence(capsys, monkeypatch):
    def full(args, profile):
        raise OSError(errno.ENOSPC, "No space left on device", "rows.jsonl")

    monkeypatch.setattr(cli.commands, "search", full)
    status, out, err = run(capsys, "search", "rent", "--profile", "ci")
    assert (status, out) == (1, "") and "No space left" in err and "rows.jsonl" in err and err.count("\n") == 1


def test_a_teacher_is_asked_as_its_pupil_will_be(capsys, home, monkeypatch):
    teachers = []

    def traces(asked, retriever, teacher, *rest):
        teachers.append(teacher)
        return {"accepted": 0, "by_type": {}, "rejected": {}}

    (home / "q.jsonl").write_text('{"id": "1", "question": "Who?", "answer": "Ada"}')
    monkeypatch.setattr(cli.commands, "_retriever", lambda args, profile: None)
    monkeypatch.setattr(cli.commands, "_engine", lambda profile: nullcontext((None, "http://fake")))
    monkeypatch.setattr(distill, "traces", traces)
    argv = ("--questions", str(home / "q.jsonl"), "--out", "o", "--profile", "ci")
    status, out, _ = run(capsys, "distill", "traces", *argv)
    assert status == 0 and "stand-in" in out, "it is said that a stand-in taught"
    assert not teachers[0].stand_in, "and its extra prompts, which no training row holds, were not sent"


@pytest.fixture
def evaluate(capsys, home, monkeypatch):
    """Runs `kit evaluate` over an index of one text: (rows of the question file, text, further arguments)."""

    def found(rows: list[dict], text: str, *argv: str) -> tuple[int, str, str]:
        (home / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
        desk, index = Desk(), index_of(home, {"a.txt": text}).index

        def assistant():
            desk().retriever.index = index
            return desk.made[-1]

        monkeypatch.setattr(cli.commands, "_assistants", lambda args, profile: nullcontext((assistant, None)))
        argv = ("--questions", str(home / "q.jsonl"), "--out", str(home / "out"), *argv)
        try:
            return run(capsys, "evaluate", *argv)
        finally:
            index.close()

    return found


RENT = {"id": "1", "question": "What is the rent?", "answer": "48,000"}


def test_rows_of_another_budget_or_another_index_are_refused(evaluate, home):
    profile = home / "own.toml"
    for tokens, text, said in (
        (90, "The rent.", ""),
        (90, "The rent.", ""),
        (40, "The rent.", "another thinking_tokens;"),
        (90, "The fare.", "another index;"),
    ):
        profile.write_text(f'base = "ci"\nthinking_tokens = {tokens}')
        status, _, err = evaluate([RENT], text, "--modes", "rag", "--profile", str(profile))
        assert status == bool(said) and said in err


def test_rejected_tries_are_no_questions(evaluate, home):
    rows = [RENT, {"id": "2", "question": "Why?", "answer": "x", "rejected": "no answer"}]
    assert evaluate(rows, "The rent.", "--modes", "rag", "--profile", "ci")[0] == 0
    assert [row["id"] for row in evaluation.read_rows(home / "out" / "rows.jsonl")] == ["1"]


def test_gold_passages_of_a_question_without_sources_are_refused_before_anything_is_asked(evaluate, home):
    status, _, err = evaluate([RENT], "The rent.", "--modes", "rag,gold", "--profile", "ci")
    assert status == 1 and "'1' the first" in err and not (home / "out").exists()


def test_debug_shows_the_traceback():
    from kit.config import KitError

    with pytest.raises(KitError, match="no index"):
        main(["search", "rent", "--profile", "ci", "--debug"])


def test_help_teaches(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in ("setup", "doctor", "ingest", "search", "ask", "evaluate", "chat"):
        assert f"kit {command}" in out or f"    {command} " in out
    _, out, _ = run(capsys, "ask", "--help")
    assert "closed" in out and "agentic" in out


def test_doctor_reports_and_fails_on_an_empty_home(capsys):
    status, out, _ = run(capsys, "doctor", "--profile", "ci", "--json")
    report = json.loads(out)
    assert status == 1 and report["ok"] is False
    assert all(check["remedy"] for check in report["checks"] if not check["ok"])
    assert any(check["ok"] for check in report["checks"])


def test_a_service_is_asked_and_its_answer_printed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("KIT_TOKEN", "secret, another")
    app = service.rag(Desk(), Threads(tmp_path / "threads.sqlite"), service_tokens())
    with served(app) as url:

        def query(*argv: str) -> str:
            status, out, err = run(capsys, "query", *argv, "--url", url, "--profile", "ci")
            assert (status, err) == (0, "")
            return out.strip()

        thread = query("new-thread")
        assert json.loads(query("rag", "What is the rent?", "--thread", thread, "--json"))["answer"] == "48,000"
        assert "lease.pdf, page 1" in query("rag", "What is the rent?")
        assert query("history", thread) == "> What is the rent?\n48,000"
        assert query("threads").startswith(f"{thread}  1 turns  What is the rent?")
        assert "forgotten" in query("clear", thread)
        assert json.loads(query("threads", "--json")) == {"threads": []}


@pytest.mark.parametrize(
    ("name", "argv", "sources"),
    [
        ("vector-store", ["vector-store", "rye bread", "--k", "1"], ["bread.md"]),
        ("vector-store", ["passages", "tides.txt"], ["tides.txt"]),
        ("retriever", ["retriever", "rye bread", "--k", "1"], ["bread.md"]),
        ("retriever", ["documents", "rye bread", "--n", "1"], ["bread.md"]),
    ],
)
def test_every_route_of_the_store_and_the_retriever_is_asked(capsys, home, name, argv, sources):
    retriever = index_of(home, {"tides.txt": "High water is at noon.", "bread.md": "Rye bread is of flour and salt."})
    with served(apps(retriever, Threads(home / "t.sqlite"))[name]) as url:
        status, out, _ = run(capsys, "query", *argv, "--url", url, "--profile", "ci", "--json")
        assert status == 0 and [hit["source"] for hit in json.loads(out)["hits"]] == sources
        status, _, err = run(capsys, "query", "passages", "nowhere.pdf", "--url", url, "--profile", "ci")
        assert status == 1 and "404" in err
