"""Check everything that an answer needs, and name the remedy for what is wrong."""

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import ollama
import psutil

from kit import engine, models
from kit.config import GIB, KitError, Profile, gpu_memory_gib

Finding = tuple[bool, str, str]  # ok, detail, remedy
PYTHONS = ((3, 11), (3, 13))  # the first and the last that the kit is made for
# How Ollama reports that `llama-server` died, in its log and in its answers.
CRASH = re.compile(r"segmentation fault|SIGSEGV|terminated: exit status|signal arrived", re.IGNORECASE)


def check(profile: Profile) -> list[dict]:
    """Look at everything; `[{name, ok, detail, remedy}]`, with an empty remedy where all is well.

    Starts an Ollama for as long as it takes where none answers, and loads the models. Raises nothing:
    a check that fails itself is a row that says so.
    """
    rows = [
        _row("python", _python),
        _row("write access", lambda: _writable(profile.home)),
    ]
    if profile.provider == "ollama":  # another's models are on another machine
        rows += [_row("disk", lambda: _disk(profile)), _row("memory", lambda: _memory(profile))]
        rows += _engine_rows(profile)
    rows.append(_row("embedding model", lambda: _embedding(profile)))
    rows.append(_row("index", lambda: _index(profile)))
    return rows


def _row(name: str, look: Callable[[], Finding]) -> dict:
    try:
        ok, detail, remedy = look()
    except KitError as error:
        ok, detail, remedy = _refused(error)
    except Exception as error:  # no fault of one check may hide the others; it is shown as what it is
        ok, detail = False, f"the check itself failed: {type(error).__name__}: {error}"
        remedy = "report this line with the output of `kit doctor --json`"
    return {"name": name, "ok": ok, "detail": detail, "remedy": "" if ok else remedy}


def _refused(error: KitError) -> Finding:
    """A `KitError` is one sentence with its remedy behind the last semicolon."""
    cause, _, remedy = str(error).rpartition("; ")
    return (False, cause, remedy.rstrip(".")) if cause else (False, remedy, "see the line itself")


def _python() -> Finding:
    first, last = PYTHONS
    detail = f"{sys.version.split()[0]}, {sys.executable}"
    remedy = f"use Python {first[0]}.{first[1]} to {last[0]}.{last[1]}"
    return first <= sys.version_info[:2] <= last, detail, remedy


def _writable(home: Path) -> Finding:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"kit")
    except OSError as error:
        return (
            False,
            f"{home} cannot be written to ({error.strerror})",
            "set KIT_HOME to a folder that you can write to",
        )
    return True, str(home), ""


def _disk(profile: Profile) -> Finding:
    free = shutil.disk_usage(next(p for p in (profile.home, *profile.home.parents) if p.is_dir())).free / GIB
    here = [file.stat() for part in ("engine", "weights", "models") for file in (profile.home / part).rglob("*")]
    used = sum({stat.st_ino: stat.st_size for stat in here}.values()) / GIB  # hard links count once
    needed = max(profile.disk_gib - used, 0)
    detail = f"{free:.1f} GiB free, {used:.1f} GiB in use, and the profile needs {profile.disk_gib:.0f} GiB in all"
    return free >= needed, detail, "make room, or set KIT_HOME to a folder on a larger disk"


def _memory(profile: Profile) -> Finding:
    main, gpu = psutil.virtual_memory().total / GIB, gpu_memory_gib()
    detail = f"{main:.0f} GiB, GPU {gpu:.0f} GiB, and the profile needs {profile.memory_gib:.0f} GiB"
    return max(main, gpu) >= profile.memory_gib, detail, "choose a smaller profile with --profile"


def _engine_rows(profile: Profile) -> list[dict]:
    with ExitStack() as stack:
        servers = []

        def start() -> Finding:
            server = stack.enter_context(engine.running(profile))
            servers.append(server)
            return True, f"Ollama {server.version}, {server.source}: {server.path or server.url}", ""

        row = _row("engine", start)
        return [row, *(_model_rows(profile, servers[0]) if servers else [])]


def _model_rows(profile: Profile, server: engine.Engine) -> list[dict]:
    client = ollama.Client(server.url, timeout=60, trust_env=False)
    rows = []
    for role in models.ROLES:
        rows.append(_row(f"{role} model", lambda role=role: _model(profile, client, role)))
        if rows[-1]["ok"]:
            rows.append(_row(f"{role} context", lambda role=role: _context(profile, server.url, role)))
            rows.append(_row(f"{role} capabilities", lambda role=role: _capabilities(profile, client, role)))
    told = " ".join(row["detail"] for row in rows if not row["ok"])
    rows.append(_row("amx", lambda: _amx(server.path, engine.cpu_flags(), told + _log_since_start(profile.home))))
    return rows


def _model(profile: Profile, client: ollama.Client, role: str) -> Finding:
    name = profile.model_name(role)
    found = {model.model.removesuffix(":latest"): model for model in client.list().models}.get(name)
    if found is None:
        return False, f"{name} is not in Ollama", "run `kit setup`"
    stand_in = " (a stand-in for a reasoning model)" if role == "reasoner" and profile.stand_in else ""
    return True, f"{name}, {found.details.parameter_size} {found.details.quantization_level}{stand_in}", ""


def _context(profile: Profile, url: str, role: str) -> Finding:
    name = profile.model_name(role)
    found, wanted = models.effective_context(url, name), profile.num_ctx
    remedy = f"see that {profile.modelfile(role)} says PARAMETER num_ctx {wanted}, then run `kit setup`"
    return found == wanted, f"{name} runs with {found} tokens, and the profile asks for {wanted}", remedy


def _capabilities(profile: Profile, client: ollama.Client, role: str) -> Finding:
    name = profile.model_name(role)
    found = client.show(name).capabilities or []
    told = f"{name}: {', '.join(found)}"
    template = models.parse_modelfile(profile.modelfile(role).read_text(encoding="utf-8"))["template"]
    # A template of one's own without thoughts is meant so: a lean model thinks in its text.
    if role == "primary" or (template and ".Thinking" not in template):
        return "completion" in found, told, f"start the Modelfile of {name} from a model that chats"
    remedy = (
        f"give the Modelfile of {name} a TEMPLATE that writes .Thinking, as modelfiles/ci-reasoner-8k.Modelfile does"
    )
    return "thinking" in found, told, remedy


def _amx(binary: Path | None, flags: set[str], told: str) -> Finding:
    """The crash of ollama issue 17006: llama-server dies on CPUs with AMX."""
    if not any(flag.startswith("amx") for flag in flags):
        return True, "this CPU has no AMX, whose use makes some builds crash", ""
    folder = binary.resolve().parent.parent / "lib" / "ollama" if binary else None
    libraries = list(folder.rglob(engine.AMX_LIBRARY)) if folder else []
    if not libraries and not CRASH.search(told):
        return True, "this CPU has AMX, and no sign of the crash that its use brings", ""
    where = libraries[0] if libraries else f"{engine.AMX_LIBRARY} in Ollama's lib/ollama"
    why = "llama-server has crashed" if CRASH.search(told) else "this build uses it, which makes llama-server crash"
    return (
        False,
        f"this CPU has AMX, and {why}",
        f"remove {where}, or build without AMX: remove the engine folder and run `kit setup`",
    )


def _log_since_start(home: Path) -> str:
    """What our server has logged since it was last started; empty where it never was."""
    log = home / "logs" / "ollama.log"
    return log.read_text(errors="replace").rpartition("Listening on ")[2] if log.is_file() else ""


def _embedding(profile: Profile) -> Finding:
    from kit.index import Embedder

    dimension = Embedder(profile.embedding_path).dimension
    return True, f"{profile.embedding}, {dimension} dimensions, {profile.embedding_path}", ""


def _index(profile: Profile) -> Finding:
    from kit.index import Embedder, Index

    with Index.open(profile.index, Embedder(profile.embedding_path)) as index:
        return True, f"{index.count()} chunks, {profile.index}", ""
