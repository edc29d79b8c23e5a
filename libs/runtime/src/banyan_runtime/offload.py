"""Heavy work off the event loop: tokenising, hashing, file reads.

Injected, because threads have no place in virtual time: there the twin computes in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Offload(Protocol):
    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """`function(*args)`, elsewhere; its exceptions come back."""
        ...

    async def close(self) -> None: ...


class ThreadOffload:
    """A bounded pool of threads. What is queued past it waits its turn."""

    def __init__(self, max_workers: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix="offload")

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class InlineOffload:
    """The twin: computes at once, in place."""

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        await asyncio.sleep(0)
        return function(*args)

    async def close(self) -> None:
        return
