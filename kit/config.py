"""Profiles: which models, windows and budgets the kit runs with, and why these.

This is the only module that reads the environment. Everything else is handed a `Profile`.
"""

import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

import httpx
import psutil

PACKAGE = Path(__file__).parent
# Beside the package in a checkout, inside it in a wheel.
MODELFILES = PACKAGE / "modelfiles" if (PACKAGE / "modelfiles").is_dir() else PACKAGE.parent / "modelfiles"
HOME = Path("~/.cache/agentic-rag-kit").expanduser()
GIB = 2**30


class KitError(Exception):
    """Something a person can mend. Its text is one sentence: the cause, the value and the remedy."""


@dataclass(frozen=True)
class Profile:
    """Everything that decides what runs. Frozen, and passed in: there is no global configuration.

    `primary` and `reasoner` name a Modelfile (`ci-primary` stands for
    `modelfiles/ci-primary-8k.Modelfile` when `num_ctx` is 8192), give the path of a Modelfile of
    one's own, or, where `provider` is not `ollama`, are model ids of that server.
    """

    name: str
    primary: str
    reasoner: str
    embedding: str
    why: str = ""
    # The reasoner is played by a model that is not a reasoning model; every result says so. It is asked plainly before
    # it thinks, thinks in plain text, and is asked afterwards whether its answer is there (see kit/reasoner.py).
    stand_in: bool = False
    provider: Literal["ollama", "openai", "azure", "huggingface"] = "ollama"
    base_url: str = ""  # of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1, or the endpoint of Azure
    api_version: str = ""  # of Azure OpenAI, e.g. 2024-10-21
    api_key_env: str = ""  # the name of the environment variable that holds the key
    num_ctx: int = 8192  # tokens; the same for both roles, or Ollama reloads the shared weights
    chunk_size: int = 300  # characters: many small passages hold more of what is asked than few large ones
    chunk_overlap: int = 40  # characters
    k: int = 10  # passages a search returns
    max_steps: int = 3  # calls of the primary model for one question
    primary_tokens: int = 200  # budget of one call of the primary model
    thinking_tokens: int = 120  # budget of the reasoner's thoughts
    answer_tokens: int = 256  # budget of an answer or a verdict
    call_seconds: float = 300.0  # wall-clock limit of one model call
    memory_gib: float = 6.0  # main (or GPU) memory that the models need
    disk_gib: float = 8.0  # disk that engine, weights and models need
    home: Path = HOME  # engine, weights, models and the demo's index, from KIT_HOME
    ollama_host: str = ""  # an Ollama to use instead of our own, from OLLAMA_HOST

    @property
    def index(self) -> Path:
        """Folder of the demo's index, the default of every `--index`."""
        return self.home / "index"

    @property
    def embedding_path(self) -> Path:
        """Folder of the sentence-transformers model: `embedding` itself where it is one, else under `home`."""
        own = expanded(self.embedding)
        return own if own.is_dir() else self.home / "weights" / Path(self.embedding).name

    @property
    def api_key(self) -> str:
        """The provider's key, read when it is needed so that no record of the profile holds it."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else ""

    def modelfile(self, role: str) -> Path:
        """Path of the Modelfile of `role` (`primary` or `reasoner`) for this profile's window."""
        name = getattr(self, role)
        own = expanded(name)
        path = own if own.suffix or own.is_file() else MODELFILES / f"{name}-{self.num_ctx // 1024}k.Modelfile"
        if not path.is_file():
            raise KitError(
                f"Profile {self.name} names the Modelfile {path}, which does not exist; "
                "use num_ctx 8192 or 32768, or give the path of a Modelfile of your own."
            )
        return path

    def model_name(self, role: str) -> str:
        """The name under which `role` is known to the provider, e.g. `kit-ci-primary-8k`."""
        return f"kit-{self.modelfile(role).stem}".lower() if self.provider == "ollama" else getattr(self, role)


PROFILES = {
    p.name: p
    for p in (
        Profile("ci", "ci-primary", "ci-reasoner", "all-MiniLM-L6-v2", stand_in=True, memory_gib=4, disk_gib=6),
        Profile("laptop", "laptop-primary", "laptop-reasoner", "all-MiniLM-L6-v2", memory_gib=8, disk_gib=12),
        Profile(
            "gpu", "gpu-primary", "gpu-reasoner", "all-mpnet-base-v2", memory_gib=15, disk_gib=20, thinking_tokens=1024
        ),
        Profile(
            "gpu-large",
            "gpu-large-primary",
            "gpu-large-reasoner",
            "all-mpnet-base-v2",
            num_ctx=32768,
            memory_gib=40,
            disk_gib=30,
            thinking_tokens=2048,
        ),
    )
}


def load_profile(choice: str | None = None) -> Profile:
    """The profile to run with; its `why` says how it was chosen.

    In order: `choice` (a name, or the path of a TOML file), `KIT_PROFILE`, the profile that the
    last `kit setup` made, and then what the machine has: GPU memory, main memory, and whether
    Ollama's registry answers. Raises `KitError` for a name or a file that does not hold a profile.
    """
    home = expanded(os.environ.get("KIT_HOME") or HOME).absolute()
    if choice:
        name, why = choice, "asked for"
    elif os.environ.get("KIT_PROFILE"):
        name, why = os.environ["KIT_PROFILE"], "KIT_PROFILE asks for it"
    elif (home / "profile").is_file():
        name = (home / "profile").read_text(encoding="utf-8").strip()
        why = "the last `kit setup` made it; --profile chooses another"
    else:
        name, why = _detect()
    profile = _from_file(expanded(name)) if name.endswith(".toml") else PROFILES.get(name)
    if profile is None:
        raise KitError(f"There is no profile {name!r}; choose one of {', '.join(PROFILES)}, or give a .toml file.")
    return replace(profile, why=why, home=home, ollama_host=os.environ.get("OLLAMA_HOST", ""))


def remember_profile(profile: Profile, choice: str | None) -> None:
    """Make `profile` the one that later commands use when nothing else is asked for.

    `choice` is what `--profile` named. Without it a profile is kept only where none is: `KIT_PROFILE` is for a while.
    """
    record = profile.home / "profile"
    if not choice and record.is_file():
        return
    choice = choice or os.environ.get("KIT_PROFILE", "")
    replace_text(record, str(expanded(choice).absolute()) if choice.endswith(".toml") else profile.name)


def _from_file(path: Path) -> Profile:
    """A profile file: `base = "ci"` and any field of `Profile` that should differ."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KitError(
            f'The profile file {path} cannot be read ({error}); give a TOML file with `base = "ci"`.'
        ) from error
    base = values.pop("base", "ci")
    if not isinstance(base, str) or base not in PROFILES:
        raise KitError(f"The profile file {path} has base {base!r}; choose one of {', '.join(PROFILES)}.")
    kinds = {field.name: field.type for field in fields(Profile) if field.name not in ("home", "why", "ollama_host")}
    for key, value in values.items():
        if key not in kinds:
            raise KitError(
                f"The profile file {path} sets {key}, which no profile has (api_key_env names the variable of a key); "
                "see the fields of Profile in kit/config.py."
            )
        if not _fits(key, value, kinds[key]):
            raise KitError(
                f"The profile file {path} sets {key} to {value!r}; see the fields of Profile in kit/config.py."
            )
    for key in ("primary", "reasoner", "embedding"):  # a path counts from the profile file
        beside = path.absolute().parent / expanded(values.get(key, ""))
        if values.get(key) and beside.exists():
            values[key] = str(beside)
    return replace(PROFILES[base], **{"name": path.stem, **values})


def _fits(key: str, value, kind) -> bool:
    if choices := get_args(kind):  # of a Literal
        return value in choices
    if kind not in (int, float):
        return isinstance(value, kind)
    number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return number and (value > 0 or (key, value) == ("chunk_overlap", 0)) and (key != "num_ctx" or value % 1024 == 0)


def _detect() -> tuple[str, str]:
    gpu = gpu_memory_gib()
    memory = psutil.virtual_memory().total / GIB
    if gpu >= 47:
        wanted, why = "gpu-large", f"a GPU of {gpu:.0f} GiB"
    elif gpu >= 15:
        wanted, why = "gpu", f"a GPU of {gpu:.0f} GiB"
    elif memory >= 15:
        wanted, why = "laptop", f"no GPU of 16 GiB, and {memory:.0f} GiB of memory"
    else:
        return "ci", f"no GPU, and only {memory:.0f} GiB of memory"
    if hub_answers():
        return wanted, f"{why}, and Ollama's registry answers"
    return "ci", ("no GPU" if not gpu else why) + ", and Ollama's registry does not answer"


def service_tokens() -> tuple[str, ...]:
    """The tokens that our services ask for, from `KIT_TOKEN`: one, or one for each user with commas between.

    Raises `KitError` for letters that no HTTP header carries.
    """
    tokens = tuple(token.strip() for token in os.environ.get("KIT_TOKEN", "").split(",") if token.strip())
    if not all(token.isascii() for token in tokens):
        raise KitError(
            "KIT_TOKEN holds a letter that is not ASCII, which no HTTP header carries; choose another token."
        )
    return tokens


def expanded(path: str | Path) -> Path:
    """`path` with the home folder for a `~`; a name that only begins with one, such as ~backup.md, is left alone."""
    return Path(os.path.expanduser(path))


def replace_text(path: Path, text: str) -> None:
    """Write all of `text` to `path` or nothing, whenever we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def environment(**changes: str) -> dict[str, str]:
    """Our own environment with `changes`: what a program that we start is given."""
    return {**os.environ, **changes}


def gpu_memory_gib() -> float:
    """Memory of the largest NVIDIA GPU in GiB, 0.0 where there is none."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return 0.0
    return max((float(row) / 1024 for row in rows if row.replace(".", "").isdigit()), default=0.0)


def hub_answers(url: str = "https://ollama.com") -> bool:
    """Whether the place that Ollama pulls weights from can be reached, and lets us in."""
    try:
        return httpx.head(url, timeout=3).status_code < 400
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError):  # the last two: a proxy that httpx cannot use
        return False
