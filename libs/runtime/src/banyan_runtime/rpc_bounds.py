"""What gRPC and its twin share: the bound on calls in flight, the report of a broken handler.

A gRPC server drops bursts past its pending limit with CANCELLED and no log. A client that bounds
itself gets an explicit refusal instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from banyan_runtime.rpc import Code, RpcError

MAX_IN_FLIGHT = 512
MAX_WAIT_S = 5.0
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What a stream holds, about, of what its reader has not taken; then its writer waits."""


class CallSlots:
    """At most `limit` calls at once; a call waits at most `wait_s` for its turn."""

    def __init__(self, limit: int = MAX_IN_FLIGHT, wait_s: float = MAX_WAIT_S) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._limit = limit
        self._wait_s = wait_s

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot. Raises RpcError EXHAUSTED when none came free in time."""
        if self._slots.locked():
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._slots.acquire()
            except TimeoutError:
                message = f"{self._limit} calls are in flight to this address"
                raise RpcError(Code.EXHAUSTED, message) from None
        else:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()


def report_handler_failure(path: str, error: Exception) -> None:
    """Hand an unexpected exception of a handler to the loop's exception handler."""
    context = {"message": f"the handler of {path} failed", "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
