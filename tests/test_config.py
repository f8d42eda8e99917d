"""Profiles: which is chosen, why, and what is refused."""

import os
import subprocess

import pytest

from kit import config
from kit.config import MODELFILES, PROFILES, KitError, load_profile, remember_profile, service_tokens


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No profile is asked for, and the machine is what each test says it is."""
    for name in ("KIT_PROFILE", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KIT_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("gpu", "memory_gib", "hub", "name", "said"),
    [
        (80, 64, True, "gpu-large", "80 GiB"),
        (24, 64, True, "gpu", "24 GiB"),
        (0, 16, True, "laptop", "Ollama's registry answers"),
        (0, 24, False, "ci", "does not answer"),
        (24, 64, False, "ci", "does not answer"),
        (0, 8, True, "ci", "only 8 GiB"),
    ],
)
def test_the_machine_decides_and_the_reason_is_told(monkeypatch, gpu, memory_gib, hub, name, said):
    monkeypatch.setattr(config, "gpu_memory_gib", lambda: gpu)
    monkeypatch.setattr(config, "hub_answers", lambda: hub)
    monkeypatch.setattr(config.psutil, "virtual_memory", lambda: type("M", (), {"total": memory_gib * config.GIB}))
    profile = load_profile()
    assert profile.name == name and said in profile.why


def test_what_is_asked_for_wins(monkeypatch, tmp_path):
    remember_profile(load_profile("gpu"), "gpu")
    assert load_profile().name == "gpu"
    monkeypatch.setenv("KIT_PROFILE", "laptop")
    assert load_profile().name == "laptop"
    assert load_profile("ci").name == "ci"
    assert load_profile("ci").home == tmp_path / "home"


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "laptop"\nk = 8\nnum_ctx = 32768\n')
    profile = load_profile(str(path))
    assert (profile.name, profile.k, profile.embedding) == ("mine", 8, "all-MiniLM-L6-v2")
    assert profile.modelfile("primary").name == "laptop-primary-32k.Modelfile"
    remember_profile(profile, str(path))
    assert load_profile().name == "mine"
    remember_profile(load_profile(), None)
    assert load_profile().name == "mine", "a second `kit setup` keeps it"


def test_a_file_that_the_environment_names_is_remembered_as_a_file(monkeypatch, tmp_path):
    (tmp_path / "mine.toml").write_text('base = "laptop"\n')
    monkeypatch.setenv("KIT_PROFILE", str(tmp_path / "mine.toml"))
    remember_profile(load_profile(), None)
    monkeypatch.delenv("KIT_PROFILE")
    assert load_profile().name == "mine"


def test_the_environment_chooses_for_a_while_and_changes_no_default(monkeypatch):
    remember_profile(load_profile("gpu"), "gpu")
    monkeypatch.setenv("KIT_PROFILE", "ci")
    remember_profile(load_profile(), None)
    monkeypatch.delenv("KIT_PROFILE")
    assert load_profile().name == "gpu"


def test_a_token_that_no_header_carries_is_refused(monkeypatch):
    monkeypatch.setenv("KIT_TOKEN", "one, schlüssel")
    with pytest.raises(KitError, match="KIT_TOKEN"):
        service_tokens()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k = ", "cannot be read"),
        ("colour = 3", "colour"),
        ('base = "huge"', "huge"),
        ('k = "five"', "k"),
        ('base = ["ci"]', "base"),
        ('provider = "Ollama"', "provider"),
        ('api_key = "sk-secret"', "api_key_env"),
        ('ollama_host = "gpu-box:11434"', "ollama_host"),
        ("k = true", "k to True"),
        ("answer_tokens = -1", "answer_tokens"),
        ("call_seconds = 0", "call_seconds"),
        ("num_ctx = 9000", "num_ctx"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(KitError, match=said):
        load_profile(str(path))


def test_a_path_counts_from_the_profile_file(tmp_path, monkeypatch):
    (tmp_path / "own.Modelfile").write_text("FROM tiny:1b")
    (tmp_path / "mine.toml").write_text('primary = "own.Modelfile"\nchunk_overlap = 0')
    monkeypatch.chdir("/")
    profile = load_profile(str(tmp_path / "mine.toml"))
    assert profile.modelfile("primary") == tmp_path / "own.Modelfile" and profile.reasoner == "ci-reasoner"


def test_a_modelfile_may_have_ollamas_own_name(tmp_path):
    (tmp_path / "Modelfile").write_text("FROM tiny:1b")
    (tmp_path / "mine.toml").write_text('primary = "Modelfile"')
    assert load_profile(str(tmp_path / "mine.toml")).modelfile("primary") == tmp_path / "Modelfile"


def test_a_proxy_that_httpx_cannot_use_is_no_way_to_the_hub(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "socks://127.0.0.1:1")
    assert config.hub_answers() is False


def test_unknown_names():
    with pytest.raises(KitError, match="no profile 'huge'; choose one of ci, laptop"):
        load_profile("huge")
    with pytest.raises(KitError, match="cannot be read"):
        load_profile("missing.toml")


def test_every_profile_has_its_modelfiles():
    for profile in PROFILES.values():
        for role in ("primary", "reasoner"):
            assert profile.modelfile(role).parent == MODELFILES
            assert profile.model_name(role).startswith("kit-")


def test_a_window_without_a_modelfile(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("num_ctx = 4096")
    with pytest.raises(KitError, match="8192 or 32768"):
        load_profile(str(path)).modelfile("primary")


def test_no_gpu_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert config.gpu_memory_gib() == 0.0
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    assert subprocess.run(["nvidia-smi"]).returncode == 9
    assert config.gpu_memory_gib() == 0.0


def test_the_key_is_read_late_and_never_kept(monkeypatch, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('provider = "openai"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "MY_KEY"\n')
    monkeypatch.setenv("MY_KEY", "secret")
    profile = load_profile(str(path))
    assert profile.api_key == "secret" and "secret" not in repr(profile)
