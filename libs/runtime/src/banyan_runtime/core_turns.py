"""Turns of processes that share a machine's cores: who has the turn computes with all of them.

Threads of two processes on the same cores stop one another in the middle of a step, and each then
waits at its barriers for a thread that does not run. Here a step runs alone, whose it ever is.

Two file locks in a folder, which the system takes from a process that dies. Who waits for the turn
holds `next`, so that whoever gives the turn back cannot take it again past those who wait. A
process that is stopped while it has the turn must not stop the others: who waits in vain for
`patience_s` goes on without one, and so do its later turns until the wait has ended.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_S = 2.0
"""Longer than any step that is not stuck."""


class CoreTurns:
    """The turns of one process, taken by one of its threads. Locks belong to the open files."""

    def __init__(
        self, folder: Path, logger: logging.Logger, patience_s: float = PATIENCE_S
    ) -> None:
        """Raises OSError."""
        self._next = _open(folder / "next-turn")
        self._turn = _open(folder / "turn")
        self._logger = logger
        self._patience_s = patience_s
        # A wait in the kernel has no end but the lock, so it is another thread's.
        self._wanted = queue.SimpleQueue[None]()
        self._granted = queue.SimpleQueue[None]()
        self._mutex = threading.Lock()
        self._given_up = False
        threading.Thread(target=self._wait_for_turns, name="turns", daemon=True).start()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it was granted."""
        granted = self._take()
        try:
            yield granted
        finally:
            if granted:
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _take(self) -> bool:
        with self._mutex:
            if self._given_up:
                return False
        if self._take_at_once():
            return True
        self._wanted.put(None)
        try:
            self._granted.get(timeout=self._patience_s)
        except queue.Empty:
            return self._give_up()
        return True

    def _take_at_once(self) -> bool:
        """While somebody waits, `next` is not to be had."""
        if not _try_lock(self._next):
            return False
        try:
            return _try_lock(self._turn)
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def _give_up(self) -> bool:
        with self._mutex:
            if not self._granted.empty():
                self._granted.get()
                return True
            self._given_up = True
        words = "another process keeps the turn for the cores: steps go on without it"
        self._logger.warning(words, extra={"waited_s": self._patience_s})
        return False

    def _wait_for_turns(self) -> None:
        while True:
            self._wanted.get()
            fcntl.flock(self._next, fcntl.LOCK_EX)
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            fcntl.flock(self._next, fcntl.LOCK_UN)
            with self._mutex:
                if self._given_up:
                    fcntl.flock(self._turn, fcntl.LOCK_UN)
                    self._given_up = False
                else:
                    self._granted.put(None)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
