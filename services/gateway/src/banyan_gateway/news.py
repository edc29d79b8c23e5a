"""The news of all generation requests of one HTTP request, one after the other as they come.

One request, the common case, is read where it is awaited. Several are read side by side into one
bounded queue. Either way a client that does not read stops the readers, and then it is the
gateway's buffer, with its own bound, that fills.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from banyan_gateway.ports import Delta, GatewayPort, GenerationRequest, RequestFailed, Usage

_QUEUE_ITEMS = 64

News = tuple[int, list[Delta | Usage]]
"""Which request it is about, and what is new of it."""


def news_of(
    gateway: GatewayPort, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[News, None]:
    """Ends when every request has. Raises what a request raised, after what came before it.

    Closing it cancels what still runs, and waits until that has ended.
    """
    if len(requests) == 1:
        return _read(gateway, 0, requests[0])
    return _merge(gateway, requests)


async def _read(
    gateway: GatewayPort, index: int, request: GenerationRequest
) -> AsyncGenerator[News, None]:
    """Raises when the answer merely stops: it must not look complete."""
    num_open_choices = request.n
    async with aclosing(gateway.generate(request)) as stream:
        async for items in stream:
            for item in items:
                if isinstance(item, Delta):
                    num_open_choices -= item.finish_reason is not None
                elif num_open_choices:
                    raise _cut_short()
            yield index, items
            if isinstance(items[-1], Usage):
                return
    raise _cut_short()


def _cut_short() -> RequestFailed:
    return RequestFailed("internal", "the answer ended without its last word")


async def _merge(
    gateway: GatewayPort, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[News, None]:
    queue: asyncio.Queue[News | Exception] = asyncio.Queue(_QUEUE_ITEMS)

    async def read(index: int, request: GenerationRequest) -> None:
        try:
            async with aclosing(_read(gateway, index, request)) as stream:
                async for news in stream:
                    await queue.put(news)
        except Exception as error:  # guard: whatever it is, the answer's writer must hear of it
            await queue.put(error)

    tasks = [asyncio.create_task(read(index, each)) for index, each in enumerate(requests)]
    try:
        num_open = len(tasks)
        while num_open:
            news = await queue.get()
            if isinstance(news, Exception):
                raise news
            num_open -= isinstance(news[1][-1], Usage)
            yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
