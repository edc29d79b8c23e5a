"""What all measures share: the machine's threads, the sides, and rounds that alternate.

A figure is the median of its rounds. In a round every side is asked once, one after the other, and
so are the roofs: what the machine does meanwhile meets all of them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine_bench import models
from engine_bench.serving import NotHere, Side

PEERS = Path(__file__).parents[2] / ".peers"
LLAMA_CPP = PEERS / "llama.cpp"
LLAMA_CPP_REQUIREMENTS = ("llama-cpp-python==0.3.36", "gguf==0.19.0")
LLAMA_CPP_FLAGS = "-DGGML_NATIVE=ON"
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Bench:
    """How often, and on how many cores."""

    num_rounds: int
    num_threads: int

    def rounds(self, asked: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(self.num_rounds):
            for name, ask in asked.items():
                found[name].append(ask())
        return found

    @contextmanager
    def banyan(
        self,
        model: str,
        *,
        num_tokens: int,
        helper: bool = True,
        weights: str = "auto",
        step_tokens: int = 512,
    ) -> Iterator[Side]:
        """Our engine, with KV for `num_tokens` in all; with its compiled helper, or without."""
        arguments = [str(models.folder(model)), str(num_tokens // BLOCK_TOKENS + 64)]
        arguments += [str(self.num_threads), weights, str(step_tokens)]
        with (
            environment_of(helper) as environment,
            self._side(sys.executable, "banyan_side", *arguments, **environment) as side,
        ):
            yield side

    def transformers(self, model: str) -> Side:
        """In our environment, which has it for the tests of parity."""
        folder = str(models.folder(model))
        return self._side(sys.executable, "transformers_side", folder, str(self.num_threads))

    def llama_cpp(self, model: str, kind: str) -> Side:
        """Raises NotHere."""
        python = install_llama_cpp()
        path = gguf(python, model, kind)
        return self._side(python, "llama_cpp_side", str(path), str(self.num_threads))

    def roofs(self) -> Side:
        return self._side(sys.executable, "roof_side", str(self.num_threads))

    @contextmanager
    def sampler(self, *, helper: bool) -> Iterator[Side]:
        """Our sampler alone, with the compiled helper, or without."""
        with (
            environment_of(helper) as environment,
            self._side(sys.executable, "sampling_side", **environment) as side,
        ):
            yield side

    def _side(self, python: Path | str, module: str, *arguments: str, **more: str) -> Side:
        return Side(python, module, *arguments, threads=self.num_threads, environment=more)


@contextmanager
def environment_of(helper: bool) -> Iterator[dict[str, str]]:
    """Without the compiled helper: nothing is compiled yet, and there is no compiler."""
    with tempfile.TemporaryDirectory(prefix="banyan-bench-") as empty:
        yield {} if helper else {"CXX": "false", "XDG_CACHE_HOME": empty}


def install_llama_cpp() -> Path:
    """An environment of its own, built once with this machine's instructions. Raises NotHere."""
    python = LLAMA_CPP / "bin" / "python"
    if (LLAMA_CPP / "installed").exists():
        return python
    print("  building llama-cpp-python: some minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", LLAMA_CPP], check=True)
    result = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *LLAMA_CPP_REQUIREMENTS],
        env=os.environ | {"CMAKE_ARGS": LLAMA_CPP_FLAGS},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        words = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise NotHere(f"llama-cpp-python cannot be built: {words[-1]}")
    (LLAMA_CPP / "installed").touch()
    return python


def gguf(python: Path, model: str, kind: str) -> Path:
    """The model in llama.cpp's format, made once, beside its folder."""
    folder = models.folder(model)
    target = folder / f"{kind}.gguf"
    if not target.exists():
        print(f"  writing {model} as {kind}", flush=True)
        unfinished = target.with_suffix(".unfinished")
        command = [str(python), "-m", "engine_bench.gguf_file"]
        command += [str(folder), kind, str(unfinished)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, env=environment, check=True)
        unfinished.rename(target)
    return target


def median(values: list[float]) -> float:
    return statistics.median(values)
