"""Processes that cannot outlive the supervisor, each with a log file of its own.

Children lead a session of their own, so that Ctrl-C reaches the supervisor alone and the mesh
goes down in order; `tether` sees to it that they die with it when it is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from banyan_cli import tether

_TAIL_BYTES = 4096


class Child:
    """One life of one process."""

    def __init__(self, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self._process = process
        self._log_file = log_file

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, negative for a signal."""
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    def last_words(self) -> str:
        """The last line that it wrote for people: not one of the JSON lines of its log."""
        with self._log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines and not lines[-1].startswith("{") else ""


async def spawn(command: Sequence[str], env: Mapping[str, str], log_file: Path) -> Child:
    """Start `command`, whose first word is a path; what it writes is appended to `log_file`."""
    launcher = (sys.executable, "-I", "-S", tether.__file__, str(os.getpid()))
    with log_file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *launcher,
            *command,
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Child(process, log_file)
