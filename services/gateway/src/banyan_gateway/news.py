"""All generation requests of one HTTP request, read side by side into one bounded queue.

The queue is small: a client that does not read stops the readers, and then it is the gateway's
buffer, with its own bound, that fills.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from types import TracebackType

from banyan_gateway.ports import Delta, GatewayPort, GenerationRequest, RequestFailed, Usage

_QUEUE_ITEMS = 64

Item = tuple[int, Delta | Usage]


class News:
    """A context manager: leaving it cancels what still runs and waits until that has ended."""

    def __init__(self, gateway: GatewayPort, requests: Sequence[GenerationRequest]) -> None:
        self._gateway = gateway
        self._requests = requests
        self._queue: asyncio.Queue[Item | Exception] = asyncio.Queue(_QUEUE_ITEMS)
        self._tasks: list[asyncio.Task[None]] = []
        self._num_open = len(requests)
        self._taken: list[Item] = []
        self._failure: Exception | None = None

    async def __aenter__(self) -> News:
        for index, request in enumerate(self._requests):
            self._tasks.append(asyncio.create_task(self._read(index, request)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self, timeout_s: float | None) -> list[Item]:
        """All that is there, waiting for something; empty when every request has ended.

        Items are (index of the request, news). Raises TimeoutError, or what a request raised.
        """
        if self._failure is not None:
            raise self._failure
        if not self._num_open:
            return []
        async with asyncio.timeout(timeout_s):
            self._take(await self._queue.get())
        while self._failure is None and not self._queue.empty():
            self._take(self._queue.get_nowait())
        if not self._taken and self._failure is not None:
            raise self._failure
        items, self._taken = self._taken, []
        return items

    def _take(self, item: Item | Exception) -> None:
        """What came before a failure is handed out before the failure is raised."""
        if isinstance(item, Exception):
            self._failure = item
            return
        self._num_open -= isinstance(item[1], Usage)
        self._taken.append(item)

    async def _read(self, index: int, request: GenerationRequest) -> None:
        try:
            await self._read_all(index, request)
        except Exception as error:  # guard: whatever it is, the answer's writer must hear of it
            await self._queue.put(error)

    async def _read_all(self, index: int, request: GenerationRequest) -> None:
        """Raises when the answer merely stops: it must not look complete."""
        num_open_choices = request.n
        async with aclosing(self._gateway.generate(request)) as stream:
            async for item in stream:
                if isinstance(item, Delta):
                    num_open_choices -= item.finish_reason is not None
                elif num_open_choices:
                    break
                await self._queue.put((index, item))
                if isinstance(item, Usage):
                    return
        raise RequestFailed("internal", "the answer ended without its last word")
