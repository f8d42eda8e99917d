"""Every check says what it saw and, where it fails, what to do."""

import sqlite3
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import ollama
import pytest

from kit import doctor, engine, models
from kit.config import PROFILES, KitError, load_profile
from kit.finetune import MODELFILE


@pytest.fixture
def profile(tmp_path):
    return replace(PROFILES["ci"], home=tmp_path)


class FakeOllama:
    """Has the models of the profile `ci`; a test changes `capabilities`."""

    def __init__(self):
        self.capabilities = ["completion", "tools", "thinking"]
        self.names = ["kit-ci-primary-8k", "kit-ci-reasoner-8k"]

    def list(self):
        details = SimpleNamespace(parameter_size="1.8B", quantization_level="Q4_K_M")
        return SimpleNamespace(models=[SimpleNamespace(model=f"{n}:latest", details=details) for n in self.names])

    def show(self, name):
        return SimpleNamespace(capabilities=self.capabilities)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A machine where all is well, and on which one thing after the other can be broken."""

    @contextmanager
    def running(profile):
        yield engine.Engine("0.32.15", "archive", tmp_path / "bin" / "ollama", "http://fake")

    fake = FakeOllama()
    monkeypatch.setattr(ollama, "Client", lambda *a, **k: fake)
    monkeypatch.setattr(engine, "running", running)
    monkeypatch.setattr(models, "effective_context", lambda url, name: 8192)
    monkeypatch.setattr(engine, "cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(doctor, "_embedding", lambda profile: (True, "fine", ""))
    monkeypatch.setattr(doctor, "_index", lambda profile: (True, "fine", ""))
    return fake


def failed(profile) -> dict[str, dict]:
    rows = doctor.check(profile)
    assert all(set(row) == {"name", "ok", "detail", "remedy"} for row in rows)
    assert all(bool(row["remedy"]) != row["ok"] and row["detail"] for row in rows)
    return {row["name"]: row for row in rows if not row["ok"]}


def test_a_machine_where_all_is_well(server, profile):
    assert failed(profile) == {}
    rows = {row["name"]: row["detail"] for row in doctor.check(profile)}
    assert rows["reasoner model"] == "kit-ci-reasoner-8k, 1.8B Q4_K_M (a stand-in for a reasoning model)"
    assert list(rows) == [
        *("python", "write access", "disk", "memory", "engine"),
        *("primary model", "primary context", "primary capabilities"),
        *("reasoner model", "reasoner context", "reasoner capabilities"),
        *("amx", "embedding model", "index"),
    ]


def test_an_absent_engine_does_not_hide_the_other_checks(server, profile, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(engine, "locate", lambda profile: None)
    broken = failed(profile)
    assert broken["engine"]["remedy"] == "run `kit setup`"
    assert set(broken) == {"engine", "embedding model", "index"}


def test_a_missing_model(server, profile):
    server.names.remove("kit-ci-reasoner-8k")
    assert failed(profile)["reasoner model"]["remedy"] == "run `kit setup`"


def test_a_window_that_is_not_in_effect(server, profile, monkeypatch):
    monkeypatch.setattr(models, "effective_context", lambda url, name: 4096)
    broken = failed(profile)
    assert set(broken) == {"primary context", "reasoner context"}
    assert "runs with 4096 tokens, and the profile asks for 8192" in broken["primary context"]["detail"]


def test_a_reasoner_that_cannot_think(server, profile):
    server.capabilities = ["completion"]
    assert ".Thinking" in failed(profile)["reasoner capabilities"]["remedy"]


def test_a_lean_model_thinks_in_its_text(server, profile, tmp_path):
    server.capabilities = ["completion"]
    (tmp_path / "lean.Modelfile").write_text(MODELFILE.format(weights="kit-lean-weights", num_ctx=8192))
    server.names.append("kit-lean")
    assert "reasoner capabilities" not in failed(replace(profile, reasoner=str(tmp_path / "lean.Modelfile")))


def test_too_little_memory_and_disk(server, profile):
    broken = failed(replace(profile, memory_gib=10**6, disk_gib=10**6))
    assert set(broken) == {"memory", "disk"}
    assert "--profile" in broken["memory"]["remedy"]
    assert "KIT_HOME" in broken["disk"]["remedy"]


def test_what_is_on_disk_already_needs_no_room(server, profile, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    (profile.home / "weights").mkdir()
    (profile.home / "weights" / "a.gguf").write_bytes(b"x" * 2000)
    (profile.home / "weights" / "b.gguf").hardlink_to(profile.home / "weights" / "a.gguf")
    assert "disk" not in failed(replace(profile, disk_gib=2000 / 2**30))
    assert "disk" in failed(replace(profile, disk_gib=4000 / 2**30))


def test_a_home_that_cannot_be_written(server, profile):
    (profile.home / "file").write_text("")
    assert "KIT_HOME" in failed(replace(profile, home=profile.home / "file" / "home"))["write access"]["remedy"]


def test_a_python_that_the_kit_is_not_made_for(server, profile, monkeypatch):
    monkeypatch.setattr(doctor, "PYTHONS", ((3, 8), (3, 9)))
    assert failed(profile)["python"]["remedy"] == "use Python 3.8 to 3.9"


AMX = {"avx2", "amx_tile"}


def test_the_library_that_crashes_with_amx(server, profile, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "cpu_flags", lambda: AMX)
    assert failed(profile) == {}
    library = tmp_path / "lib" / "ollama" / engine.AMX_LIBRARY
    library.parent.mkdir(parents=True)
    library.write_text("elf")
    assert f"remove {library}" in failed(profile)["amx"]["remedy"]


def test_the_amx_crash_is_known_by_what_ollama_tells(server, profile, monkeypatch):
    def crash(url, name):
        raise KitError(
            f"Ollama cannot load {name} (llama runner process has terminated: exit status 2); run `kit doctor`."
        )

    monkeypatch.setattr(models, "effective_context", crash)
    assert "amx" not in failed(profile)
    monkeypatch.setattr(engine, "cpu_flags", lambda: AMX)
    broken = failed(profile)
    assert "llama-server has crashed" in broken["amx"]["detail"]
    assert engine.AMX_LIBRARY in broken["amx"]["remedy"]
    assert "terminated" in broken["primary context"]["detail"]


def test_only_what_the_log_says_since_the_last_start_counts(profile):
    log = profile.home / "logs" / "ollama.log"
    log.parent.mkdir()
    log.write_text("Listening on 1\nsignal: segmentation fault\n")
    assert not doctor._amx(None, AMX, doctor._log_since_start(profile.home))[0]
    log.write_text(log.read_text() + "Listening on 2\nfine\n")
    assert doctor._amx(None, AMX, doctor._log_since_start(profile.home))[0]


def test_a_check_that_fails_itself_is_shown_as_what_it_is(server, profile, monkeypatch):
    def broken(profile):
        raise sqlite3.DatabaseError("file is not a database")

    monkeypatch.setattr(doctor, "_index", broken)
    assert failed(profile)["index"]["detail"] == "the check itself failed: DatabaseError: file is not a database"


def test_another_provider_needs_no_ollama(server, profile):
    names = [row["name"] for row in doctor.check(replace(profile, provider="openai"))]
    assert names == ["python", "write access", "embedding model", "index"]


@pytest.mark.ollama
def test_the_real_machine_is_ready_but_for_an_index(tmp_path):
    profile = load_profile("ci")
    models.setup(profile)
    rows = {row["name"]: row for row in doctor.check(profile)}
    wrong = {name for name, row in rows.items() if not row["ok"]} - {"index", "disk", "memory"}
    assert not wrong, [rows[name] for name in wrong]
    assert "8192" in rows["reasoner context"]["detail"]
    assert engine.cpu_flags()
