"""Processes to measure: started, waited for, read in /proc, and taken down with what they started.

CPU is user plus system time of a process and all that it started and that still runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BANYAN = str(Path(sys.executable).parent / "banyan")
_BARE = Path(__file__).parent / "bare.py"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 10.0


class DidNotStart(Exception):
    """A process that was to be measured, with the last that it wrote."""


@dataclass(frozen=True, slots=True)
class Server:
    """Something that answers at `port`; `pids` are the processes whose CPU counts as its own."""

    port: int
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        return sum(map(tree_cpu_s, self.pids))


@dataclass(frozen=True, slots=True)
class Mesh:
    """One `banyan up`: its gateway's port, and by name process ids and addresses."""

    port: int
    pids: dict[str, int]
    addresses: dict[str, str]
    metrics: dict[str, str]

    def server(self, *names: str) -> Server:
        return Server(self.port, tuple(self.pids[name] for name in names))

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by process; of the supervisor none, whose children the others are."""
        return {name: tree_cpu_s(pid) for name, pid in self.pids.items() if name != "supervisor"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- CPU


def tree_cpu_s(pid: int) -> float:
    """User and system time of a process and of its descendants, in seconds."""
    return sum(map(cpu_s, (pid, *_descendants(pid))))


def cpu_s(pid: int) -> float:
    """User and system time of a process alone, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / _TICKS_PER_S


def _descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [each for child in children for each in (child, *_descendants(child))]


# ---------------------------------------------------------------- servers


@contextmanager
def mesh(
    arguments: Sequence[str] = ("--runner", "echo"), env: Mapping[str, str] | None = None
) -> Iterator[Mesh]:
    """The seven services, one prefill and one decode worker; `env` is added to the environment."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["--state-dir", folder]
        up = [_BANYAN, "up", "--detach", "--port", "0", *arguments, *place]
        environment = {**os.environ, **(env or {})}
        subprocess.run(up, check=True, stdout=subprocess.DEVNULL, env=environment)
        try:
            state: dict[str, Any] = json.loads((Path(folder) / "state.json").read_text())
            pids = {row["name"]: int(row["pid"]) for row in state["processes"]}
            pids["supervisor"] = int(state["supervisor_pid"])
            addresses = {row["name"]: str(row["address"]) for row in state["processes"]}
            metrics = {row["name"]: str(row["metrics_address"]) for row in state["processes"]}
            yield Mesh(int(state["gateway_url"].rpartition(":")[2]), pids, addresses, metrics)
        finally:
            subprocess.run([_BANYAN, "down", *place], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def bare() -> Iterator[Server]:
    """The bare endpoint."""
    port = free_port()
    with running([sys.executable, str(_BARE), str(port)], port, "/health") as server:
        yield server


@contextmanager
def running(command: Sequence[str], port: int, ready_path: str) -> Iterator[Server]:
    """`command`, once it answers `ready_path` with 200; with all it started it is gone after."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(process, port, ready_path)
            yield Server(port, (process.pid,))
        except DidNotStart as error:
            log.seek(0)
            words = log.read().decode(errors="replace").strip()[-2000:]
            raise DidNotStart(f"{error}: {words}") from None
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DidNotStart(f"{process.args!r} exited with {process.returncode}")
        try:
            url = f"http://127.0.0.1:{port}{path}"
            if httpx2.get(url, timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise DidNotStart(f"{process.args!r} was not ready within {START_TIMEOUT_S:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The whole session: proxies start helpers of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
