"""Virtual time: an asyncio loop on which nothing ever really waits.

The clock is an integer of nanoseconds. When no callback is ready it jumps to the next timer, so
an hour of timeouts costs milliseconds, and the same program gives the same order of callbacks on
every machine: timers of the same instant fire in the order in which they were set, whatever
PYTHONHASHSEED or the addresses of objects are. There are no sockets, threads or executors here:
everything that does I/O is replaced by its twin.

`loop.time()` is a float, but a float of seconds holds a nanosecond exactly enough for 26 days,
so `round(when * 1e9)` gives back the integer that was meant.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from banyan_core.hashing import derive
from banyan_core.types import NS_PER_S

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_UNIX_NS = 1_750_000_000 * NS_PER_S
_MAX_NAMED_TASKS = 20
_MIN_CANCELLED_TO_SWEEP = 256
_MAX_TURNS_AT_ONE_INSTANT = 1_000_000


class Deadlock(Exception):
    """Nothing is ready, no timer is set, and the main task has not ended."""


class Livelock(Exception):
    """Callbacks follow callbacks without end and time stands still."""


class LeakedTasks(Exception):
    """The main coroutine returned while tasks that it started still ran."""


class UnhandledFailure(Exception):
    """A callback or a task failed and nobody looked at its exception."""


class VirtualClock:
    """Shows the time of one virtual loop."""

    def __init__(self, start_unix_ns: int) -> None:
        self._start_unix_ns = start_unix_ns
        self.elapsed_ns = 0

    def now_ns(self) -> int:
        return self.elapsed_ns

    def unix_ns(self) -> int:
        return self._start_unix_ns + self.elapsed_ns


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on simulated time. `clock` shows it; `rng(name)` gives seeded randomness."""

    _ready: deque[asyncio.Handle]
    _stopping: bool
    _thread_id: int | None

    def __init__(self, seed: int = 0, start_unix_ns: int = START_UNIX_NS) -> None:
        super().__init__()
        self.seed = seed
        self.clock = VirtualClock(start_unix_ns)
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._num_timers_set = 0
        self._num_cancelled = 0
        self._num_turns = 0  # since time last moved
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def rng(self, name: str) -> random.Random:
        """A random source of its own for `name`: draws elsewhere do not change it."""
        return random.Random(derive(self.seed, name))

    # ------------------------------------------------------------ time

    def time(self) -> float:
        return self.clock.elapsed_ns / NS_PER_S

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        when_ns = self.clock.elapsed_ns + round(delay * NS_PER_S)
        return self._set_timer(when_ns, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._set_timer(round(when * NS_PER_S), callback, args, context)

    def _set_timer(
        self,
        when_ns: int,
        callback: Callable[..., object],
        args: tuple[object, ...],
        context: contextvars.Context | None,
    ) -> asyncio.TimerHandle:
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        when_ns = max(when_ns, self.clock.elapsed_ns)
        timer = asyncio.TimerHandle(when_ns / NS_PER_S, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]  # asks for _timer_handle_cancelled
        self._num_timers_set += 1
        heapq.heappush(self._timers, (when_ns, self._num_timers_set, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._num_cancelled += 1
        if self._num_cancelled > max(_MIN_CANCELLED_TO_SWEEP, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._num_cancelled = 0

    # ------------------------------------------------------------ running

    def _run_once(self) -> None:
        """One turn: if nothing is ready, jump to the next timer; then run what is ready."""
        if not self._ready and not self._stopping:
            self._advance()
        self._num_turns += 1
        if self._num_turns > _MAX_TURNS_AT_ONE_INSTANT:
            self._num_turns = 0
            raise Livelock(f"time stands still at {self.time():.9f} s: {self._describe_tasks()}")
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        handle = None  # type: ignore[assignment]  # or it would keep its arguments alive

    def _advance(self) -> None:
        self._drop_cancelled()
        if not self._timers:
            raise Deadlock(f"everything waits at {self.time():.9f} s: {self._describe_tasks()}")
        self._num_turns = 0
        self.clock.elapsed_ns = self._timers[0][0]
        while self._timers and self._timers[0][0] <= self.clock.elapsed_ns:
            timer = heapq.heappop(self._timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]  # a later cancel counts nothing
            self._ready.append(timer)
            self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
            self._num_cancelled -= 1

    def close(self) -> None:
        super().close()
        self._timers.clear()

    # ------------------------------------------------------------ tasks

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = super().create_task(coro, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """Tasks that have not ended, in the order of their creation."""
        return [task for task in self._tasks if not task.done()]

    def _describe_tasks(self) -> str:
        names = [task.get_name() for task in self.pending_tasks()]
        shown = ", ".join(names[:_MAX_NAMED_TASKS])
        return shown + (f" and {len(names) - _MAX_NAMED_TASKS} more" * (len(names) > 20))

    # ------------------------------------------------------------ what does not exist here

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._thread_id not in (None, threading.get_ident()):
            raise RuntimeError("the virtual loop takes no callbacks from other threads")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> NoReturn:
        raise RuntimeError("the virtual loop has no threads: pass an InlineOffload instead")


def run_virtual(
    main: Callable[[], Coroutine[Any, Any, T]],
    seed: int = 0,
    start_unix_ns: int = START_UNIX_NS,
) -> T:
    """Run `main()` on a new virtual loop and return its result.

    Raises Deadlock, Livelock, LeakedTasks when tasks outlive `main`, and UnhandledFailure when
    anything failed unseen; tasks that are left are cancelled in the order of their creation.
    """
    loop = VirtualLoop(seed, start_unix_ns)
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        result = loop.run_until_complete(main())
        loop.run_until_complete(asyncio.sleep(0))  # lets cancelled tasks end
        leaked = [task.get_name() for task in loop.pending_tasks()]
    finally:
        try:
            _end_tasks(loop)
        finally:
            loop.close()
    if leaked:
        raise LeakedTasks(f"{len(leaked)} tasks outlived the main one: {', '.join(leaked)}")
    _raise_first(failures)
    return result


def _end_tasks(loop: VirtualLoop) -> None:
    tasks = loop.pending_tasks()
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())


def _raise_first(failures: list[dict[str, Any]]) -> None:
    if failures:
        first = failures[0]
        message = f"{first['message']} ({len(failures)} in all)"
        raise UnhandledFailure(message) from first.get("exception")
