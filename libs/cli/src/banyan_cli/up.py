"""`banyan up` and `banyan down`: one mesh on this machine, in the foreground or behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.status import Status

from banyan_cli.errors import CommandError
from banyan_cli.options import MeshOptions, check_options
from banyan_cli.state import MeshState, StateFolder
from banyan_cli.supervisor import Supervisor
from banyan_runtime.clock import SystemClock

POLL_S = 0.1
DOWN_TIMEOUT_S = 120.0
KILL_TIMEOUT_S = 5.0


class Terminal:
    """Tells people what happens, with the seconds since the start."""

    def __init__(self, console: Console, status: Status, folder: StateFolder) -> None:
        self._console = console
        self._status = status
        self._folder = folder
        self._started = time.monotonic()

    def say(self, text: str, *, trouble: bool) -> None:
        seconds = time.monotonic() - self._started
        style = "yellow" if trouble else None
        self._console.print(f"{seconds:6.1f} s  {text}", style=style, markup=False, highlight=False)

    def all_ready(self, state: MeshState) -> None:
        self._status.update("The mesh is up; Ctrl-C or `banyan down` stops it.")
        lines = (
            f"the mesh is up: {state.gateway_url}/v1",
            f"figures: {state.metrics_url}/v1/slo, logs: {self._folder.logs}",
            'try: banyan chat "The amber key opens door 4821. Which door does the amber key open?"',
        )
        for line in lines:
            self.say(line, trouble=False)


def up(options: MeshOptions, console: Console) -> int:
    """Run a mesh until it is stopped; the exit code."""
    folder = StateFolder(options.state_dir)
    folder.claim()
    check_options(options)
    with console.status("Starting the mesh") as status:
        audience = Terminal(console, status, folder)

        async def supervise() -> int:
            return await Supervisor(options, folder, SystemClock(), audience).run()

        return asyncio.run(supervise())


def up_detached(options: MeshOptions, arguments: Sequence[str], console: Console) -> int:
    """Start `banyan up` with these arguments behind; return when the mesh is up, or failed."""
    folder = StateFolder(options.state_dir)
    claimed = folder.claim()
    check_options(options)
    os.close(claimed)  # for the process that is started now
    log_file = folder.log_file("supervisor")
    command = [sys.executable, "-m", "banyan_cli.main", *arguments]
    signal.signal(signal.SIGTERM, _give_up)  # Ctrl-C raises by itself
    with log_file.open("wb") as log, console.status("Starting the mesh"):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            state = _wait_ready(folder, process)
        except BaseException:  # a signal: it would come up when nobody waits for it any more
            process.terminate()
            raise
    if state is not None:
        url = state.gateway_url
        console.print(f"the mesh is up: {url}/v1 (`banyan down` stops it)", markup=False)
        return 0
    lines = log_file.read_text().strip().splitlines() or ["it said nothing"]
    raise CommandError(f"The mesh did not start: {lines[-1].strip()}", process.returncode or 1)


def _give_up(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _wait_ready(folder: StateFolder, process: subprocess.Popen[bytes]) -> MeshState | None:
    """The state of the mesh that this supervisor has up; None when it ended before."""
    while process.poll() is None:
        state = folder.read_state()
        if state is not None and state.ready and state.supervisor_pid == process.pid:
            return state
        time.sleep(POLL_S)
    return None


def down(folder: StateFolder, console: Console) -> int:
    """Stop the mesh of this state folder, in order; fine when there is none."""
    if not folder.is_claimed():
        console.print(f"no mesh runs from {folder.path}", markup=False)
        return 0
    pid = _supervisor_pid(folder)
    with console.status("Stopping the mesh"):
        os.kill(pid, signal.SIGTERM)
        if not _wait_released(folder, DOWN_TIMEOUT_S):
            os.kill(pid, signal.SIGKILL)  # its children die with it
            _wait_released(folder, KILL_TIMEOUT_S)
            console.print("the mesh did not stop in time and was killed")
            return 1
    console.print("the mesh is down")
    return 0


def _supervisor_pid(folder: StateFolder) -> int:
    state = folder.read_state()
    if state is None:
        raise CommandError(f"The mesh of {folder.path} is just starting or ending: try again.", 1)
    return state.supervisor_pid


def _wait_released(folder: StateFolder, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while folder.is_claimed():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True
