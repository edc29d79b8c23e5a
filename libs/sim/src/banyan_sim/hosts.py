"""Simulated processes: who started which task, so that a crash can drop a whole process.

Each host is a value of a context variable. asyncio hands a task's context on to the tasks that it
starts, so whatever a service starts belongs to its host, without the service knowing of hosts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_HOST: ContextVar[str] = ContextVar("host", default="")


@contextmanager
def on_host(host: str) -> Generator[None]:
    """What is started inside runs on this host."""
    token = _HOST.set(host)
    try:
        yield
    finally:
        _HOST.reset(token)


class HostTasks:
    """A task factory that remembers the host of each task, in the order of creation."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[asyncio.Task[Any], None]] = {}

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_task_factory(self._make)

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        owned = self._by_host.setdefault(_HOST.get(), {})
        owned[task] = None
        task.add_done_callback(lambda done: owned.pop(done, None))
        return task

    def kill(self, host: str) -> None:
        """Drop every task of a host, oldest first. Its ports must have been cut before."""
        for task in list(self._by_host.pop(host, {})):
            task.cancel()
