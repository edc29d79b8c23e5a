"""How this package talks to Redis or Valkey: one factory, no hidden retries, no lost cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from banyan_runtime.settings import Bound

T = TypeVar("T")

_CANCEL_AGAIN_S = 0.01
UNREACHABLE = (RedisError, OSError, TimeoutError)


def _is_url(text: str) -> bool:
    """Raises ValueError, too, when it is none."""
    parts = parse_url(text)
    return "host" in parts or "path" in parts


RedisUrl = Annotated[str, Bound("redis://HOST:PORT", _is_url)]
"""The type of a setting that names a server."""


def connect(url: str, timeout_s: float) -> Redis:
    """A client that connects when it is used. Every call ends within about `timeout_s`.

    The protocol is fixed because the shapes of answers depend on it.
    """
    return Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


async def call(command: Awaitable[T]) -> T:
    """Await a command of the client, and be cancelled when the task is.

    The client writes under `asyncio.wait_for`, which before Python 3.12 drops a cancel that comes
    in the same turn as the write's end: a reader that was stopped would go on for ever. So the
    command has a task of its own, which is cancelled until it ends.
    """
    running = asyncio.ensure_future(command)
    running.add_done_callback(_see_failure)
    try:
        await asyncio.wait((running,))
    finally:
        while not running.done():
            running.cancel()
            await asyncio.wait((running,), timeout=_CANCEL_AGAIN_S)
    return running.result()


def _see_failure(command: asyncio.Future[T]) -> None:
    """Who was cancelled does not ask how it ended, and asyncio would report that as forgotten."""
    if not command.cancelled():
        command.exception()
