"""The life of a service process: start, serve, drain on a signal, exit with a telling code.

0: drained and stopped. 1: a task that should never end did. 2: it could not start (a wrong
setting, a taken port), with one sentence on standard error.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

from banyan_runtime.service_loop import ServiceLoop
from banyan_runtime.settings import SettingsError

T = TypeVar("T")

EXIT_OK, EXIT_FAILED, EXIT_NOT_STARTED = 0, 1, 2
_FATAL = "banyan_fatal"
_STOP_MARGIN_S = 5.0
MIDDLE_PER_FULL = 100
"""Collections of the middle generation for each full one, ten times Python's: 700,000 objects."""


class Running(Protocol):
    async def stop(self, grace_s: float) -> None:
        """Take no more work, give what runs `grace_s`, then end everything."""
        ...


class Assembly:
    """A started service, and the adapters that are closed after it, newest first."""

    def __init__(self, service: Running, adapters: AsyncExitStack) -> None:
        self._service = service
        self._adapters = adapters

    async def stop(self, grace_s: float) -> None:
        async with self._adapters:
            await self._service.stop(grace_s)


def guard(task: asyncio.Task[Any]) -> None:
    """Mark a task as eternal: any end but a cancel is reported and stops the process."""
    task.add_done_callback(_report_end)


def _report_end(task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        return
    _report(task, f"task {task.get_name()} ended, which it never should", fatal=True)


def _report_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _report(task, f"task {task.get_name()} failed", fatal=False)


def _report(task: asyncio.Task[Any], message: str, *, fatal: bool) -> None:
    error = task.exception() or RuntimeError(message)
    context = {"message": message, "exception": error, "task": task, _FATAL: fatal}
    task.get_loop().call_exception_handler(context)


class Tasks:
    """Owns a service's tasks; ends them in the order in which they were started."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that must not end by itself: if it does, the process stops with 1."""
        task = self._start(name, coro)
        guard(task)
        return task

    def spawn_brief(self, name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ends by itself. Its failure is reported, not fatal."""
        task = self._start(name, coro)
        task.add_done_callback(_report_failure)
        return task

    def _start(self, name: str, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    async def cancel_all(self) -> None:
        """Cancel every task but the caller's own, oldest first, and wait until they have ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Process:
    """Waits for the first reason to stop, and remembers the exit code."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._stop = asyncio.Event()
        self.code = EXIT_OK

    def on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(EXIT_FAILED)  # the second signal: someone is in a hurry
        self._stop.set()

    def on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._logger.error(context["message"], exc_info=error)
        if context.get(_FATAL):
            self.code = EXIT_FAILED
            self._stop.set()

    async def wait(self) -> None:
        await self._stop.wait()


def _pause_less() -> None:
    """A full garbage collection is a pause of every stream. What lives as long as the process is
    not walked through again, tens of thousands of objects; and a crowd of requests, which is, is
    not a reason for one whenever it has grown by a quarter: 10,000 at once were 12 of them, 0.1 to
    0.8 s each."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, MIDDLE_PER_FULL)


async def _live(
    start: Callable[[], Awaitable[Running]], grace_s: float, logger: logging.Logger
) -> int:
    process = _Process(logger)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(process.on_exception)
    starting = asyncio.ensure_future(start())
    stopping = asyncio.ensure_future(process.wait())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.on_signal)
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return process.code
    service = starting.result()
    _pause_less()
    await stopping
    logger.info("stopping", extra={"grace_s": grace_s})
    try:
        async with asyncio.timeout(grace_s + _STOP_MARGIN_S):
            await service.stop(grace_s)
    except TimeoutError:
        logger.error("did not stop in time")
        return EXIT_FAILED
    return process.code


def run_service(
    start: Callable[[], Awaitable[Running]], *, grace_s: float = 10.0, logger: logging.Logger
) -> int:
    """Run a service until a signal; the exit code.

    `start` builds the adapters, starts the service and returns what is to be stopped. SIGTERM
    and SIGINT drain it; a second one exits at once.
    """
    try:
        with asyncio.Runner(loop_factory=ServiceLoop) as runner:
            return runner.run(_live(start, grace_s, logger))
    except SettingsError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        named = "" if error.filename is None else f"{error.filename}: "
        print(f"{named}{error.strerror or error}", file=sys.stderr)
    return EXIT_NOT_STARTED
