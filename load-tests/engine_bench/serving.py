"""The two ends of a side: a process that is asked, and the one that asks.

Whatever is compared lives in a process of its own, and in an environment of its own where its
packages demand it. Sides are asked in turn, so that only one of them computes. This file imports
nothing but the standard library, because every environment runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LOAD_TESTS = Path(__file__).parents[1]
STOP_TIMEOUT_S = 10.0
Handler = Callable[..., Any]


class NotHere(Exception):
    """What a measure needs is not on this machine, or not in this engine."""


class SideFailed(NotHere):
    """A side could not do what it was asked; the text is its own."""


class Side:
    """A process that answers `ask`. `threads` is how many cores it computes on."""

    def __init__(
        self,
        python: Path | str,
        module: str,
        *arguments: str,
        threads: int,
        environment: Mapping[str, str],
    ) -> None:
        self.name = module
        settings = {
            "PYTHONPATH": str(LOAD_TESTS),
            "OMP_NUM_THREADS": str(threads),
            # Threads that spin between two steps would take the other sides' cores; those that
            # sleep at once within one are slow to wake.
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "1000",
        }
        self._process = subprocess.Popen(
            [str(python), "-m", f"engine_bench.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings, **environment},
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Raises SideFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([what, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideFailed(f"{self.name} ended with {self._process.wait()} at {what}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(f"{self.name}: {what}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer on stdout until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            answer = {"value": handlers[what](**arguments)}
        except Exception as error:  # guard: the one who asks must hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
