"""The compiled helper: found ready-made, or compiled in the background, or absent.

Compiling takes ten seconds and needs g++, so nobody waits for it and nobody relies on it. A
binary is built for a level of CPUs, not for the one at hand, and named by its level and sources:
a cache folder shared by unequal machines, or baked into an image, never gives a machine
instructions that it does not have. OpenMP is left unlinked on purpose: its symbols are found in
the process, in torch's copy, so that both use one pool of threads. Two spinning pools on the same
cores slow each other down tenfold.

`python -m banyan_engine.kernels.build FOLDER` compiles all levels into a folder (for images).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SOURCES = Path(__file__).parent
READY_MADE = SOURCES / "built"
"""Where an image has binaries from its own build."""
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-w")
LEVELS = {
    "avx512bf16": ("-march=x86-64-v4", "-mavx512bf16"),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
}
"""Best first. Each names what a CPU must have, and how the compiler is told."""
COMPILE_TIMEOUT_S = 300


def cpu_level() -> str | None:
    """The best level that this CPU has; None where there is none."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    if not has >= {"avx2", "fma", "bmi2", "f16c", "movbe"}:
        return None
    if not has >= {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}:
        return "avx2"
    return "avx512bf16" if "avx512_bf16" in has else "avx512"


def binary_name(level: str) -> str:
    """File name of a level's binary: other sources or flags, another name."""
    digest = hashlib.sha256(repr((FLAGS, LEVELS[level])).encode())
    for path in sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("*.h")):
        digest.update(path.read_bytes())
    return f"banyan-{level}-{digest.hexdigest()[:16]}.so"


def compile_level(level: str, folder: Path) -> Path:
    """Compile into `folder`, where the file appears whole. Raises OSError or RuntimeError."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no g++")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(f"{scratch}/{source.stem}.o")
            _compile(compiler, *FLAGS, *LEVELS[level], "-c", str(source), "-o", objects[-1])
        _compile(compiler, "-shared", *objects, "-o", f"{scratch}/out.so")
        return Path(scratch, "out.so").replace(folder / binary_name(level))


def _compile(*command: str) -> None:
    try:
        done = subprocess.run(
            ("nice", *command), capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"compiler: no end after {COMPILE_TIMEOUT_S} s") from error
    if done.returncode:
        raise RuntimeError(f"compiler: {done.stderr.strip()[:300]}")


def cache_folder() -> Path:
    """Where this user's binaries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "banyan" / "kernels"


class Loader:
    """One attempt to get the helper: `library` is set when it is there, `status` says how it is."""

    def __init__(self, ready_made: Path = READY_MADE, cache: Path | None = None) -> None:
        self.library: ctypes.CDLL | None = None
        self.status = "not asked for"
        self._ready_made = ready_made
        self._cache = cache
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Load what is ready-made, or begin to compile; at most once, and without waiting."""
        with self._lock:
            if self._thread is not None:
                return
            self.status = "compiling"
            self._thread = threading.Thread(target=self._load, name="banyan-kernels", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> ctypes.CDLL | None:
        """The library once the attempt is over, or None."""
        self.start()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self.library

    def _load(self) -> None:
        try:
            level = cpu_level()
            if level is None:
                self.status = "absent: no code for this CPU"
                return
            self.library = ctypes.CDLL(str(self._find(level)))
            self.status = f"in use: {level}"
        except (OSError, RuntimeError) as error:
            self.status = f"absent: {error}"

    def _find(self, level: str) -> Path:
        cache = self._cache or cache_folder()
        for folder in (self._ready_made, cache):
            if (path := folder / binary_name(level)).is_file():
                return path
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (cache / "lock").open("w") as lock:
            # Of processes that start together one compiles; a lock ends with its process.
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = cache / binary_name(level)
            return path if path.is_file() else compile_level(level, cache)


if __name__ == "__main__":
    for each in LEVELS:
        print(compile_level(each, Path(sys.argv[1])))
