"""The state folder of one mesh: what `up` writes and the other commands read.

`lock` is held by the supervisor as long as it lives, so that a stale `state.json` is never taken
for a running mesh. `mesh.json` is the services' `file` directory, `scale.json` the autoscaler's
wish, `logs/` has one file per process.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from banyan_cli.errors import CommandError

CLAIM_TRIES = 5
CLAIM_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the mesh as the supervisor sees it. `pid` is 0 when it does not run."""

    name: str
    service: str
    phase: str
    pid: int
    address: str
    metrics_address: str
    num_restarts: int


@dataclass(frozen=True, slots=True)
class MeshState:
    """What `state.json` says. `ready` once everything was up."""

    supervisor_pid: int
    ready: bool
    gateway_url: str
    metrics_url: str
    processes: tuple[ProcessState, ...]


class StateFolder:
    """Paths and files of one state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.mesh_file = self.path / "mesh.json"
        self.scale_file = self.path / "scale.json"
        self._state_file = self.path / "state.json"
        self._lock_file = self.path / "lock"
        self._scale_stamp = (0, 0)

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def claim(self) -> int:
        """Make the folder this process's own until the returned descriptor is closed.

        A bare descriptor, because the system closes it last of all: when the folder is free
        again, nothing of the process is left.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CommandError(f"The state folder {self.path} cannot be used: {error}.") from None
        if not _lock(lock):
            os.close(lock)
            raise CommandError(
                f"A mesh already runs from {self.path}: stop it with `banyan down`, or choose "
                "another folder with --state-dir."
            )
        for stale in (self._state_file, self.mesh_file, self.scale_file):
            stale.unlink(missing_ok=True)
        return lock

    def is_claimed(self) -> bool:
        """Whether a supervisor lives."""
        try:
            with self._lock_file.open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write_state(self, state: MeshState) -> None:
        _replace(self._state_file, asdict(state))

    def write_mesh(self, services: Mapping[str, Sequence[str]]) -> None:
        _replace(self.mesh_file, {name: list(found) for name, found in services.items()})

    def read_state(self) -> MeshState | None:
        """None while no supervisor lives, or before it has written anything."""
        if not self.is_claimed():
            return None
        try:
            content = json.loads(self._state_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        processes = tuple(ProcessState(**row) for row in content.pop("processes"))
        return MeshState(**content, processes=processes)

    def running(self) -> MeshState:
        """The running mesh. Raises CommandError when there is none."""
        state = self.read_state()
        if state is None:
            raise CommandError(f"No mesh runs from {self.path}: start one with `banyan up`.")
        return state

    def new_wish(self) -> dict[str, int] | None:
        """The wished number of workers by role, if it changed since the last call."""
        try:
            stat = self.scale_file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._scale_stamp:
                return None
            content = json.loads(self.scale_file.read_text())
        except (OSError, ValueError):
            return None
        self._scale_stamp = stamp
        return {str(role): int(count) for role, count in content.items()}


def _lock(descriptor: int) -> bool:
    """A few times, because a look at who holds the lock holds it for a moment, too."""
    for _ in range(CLAIM_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(CLAIM_PAUSE_S)
        else:
            return True
    return False


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
