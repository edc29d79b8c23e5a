"""How this package talks to Redis or Valkey: one factory, no hidden retries, no lost cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, TypeVar
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from banyan_runtime.settings import Bound

T = TypeVar("T")

_CANCEL_AGAIN_S = 0.01
_CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
_DEFAULT_PORT = 6379
UNREACHABLE = (RedisError, OSError, TimeoutError)


def is_redis_url(text: str) -> bool:
    """Raises ValueError, too, when it is none."""
    parts = parse_url(text)
    return "host" in parts or "path" in parts


def is_cluster(url: str) -> bool:
    return urlsplit(url).scheme in _CLUSTER_SCHEMES


def _is_index_url(text: str) -> bool:
    return bool(_nodes(urlsplit(text))) if is_cluster(text) else is_redis_url(text)


IndexUrl = Annotated[
    str, Bound("redis://HOST:PORT or redis+cluster://HOST:PORT,HOST:PORT", _is_index_url)
]
"""The type of a setting that names a server or some nodes of a Redis Cluster."""


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


def connect_cluster(url: str, timeout_s: float) -> RedisCluster:
    """As `connect`, to all nodes of the cluster that these belong to.

    One retry: the first failure is how the client notices that the nodes have changed. Raises
    ValueError when `url` is none.
    """
    parts = urlsplit(url)
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _nodes(parts)],
        username=parts.username,
        password=parts.password,
        ssl=parts.scheme.startswith("rediss"),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 1),
        protocol=2,
    )


def _nodes(parts: SplitResult) -> list[tuple[str, int]]:
    """HOST:PORT,HOST:PORT. Raises ValueError."""
    nodes = []
    for node in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{node}")
        if not one.hostname:
            raise ValueError(f"{node!r} is no HOST:PORT")
        nodes.append((one.hostname, one.port or _DEFAULT_PORT))
    return nodes


async def call(command: Awaitable[T], timeout_s: float | None = None) -> T:
    """Await a command of the client, and be cancelled when the task is. Raises TimeoutError.

    The client writes under `asyncio.wait_for`, which before Python 3.12 drops a cancel that comes
    in the same turn as the write's end: a reader that was stopped would go on for ever. So the
    command has a task of its own, which is cancelled until it ends.
    """
    running = asyncio.ensure_future(command)
    running.add_done_callback(_see_failure)
    try:
        await asyncio.wait((running,), timeout=timeout_s)
        is_late = not running.done()
    finally:
        while not running.done():
            running.cancel()
            await asyncio.wait((running,), timeout=_CANCEL_AGAIN_S)
    if is_late:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return running.result()


def _see_failure(command: asyncio.Future[T]) -> None:
    """Who was cancelled does not ask how it ended, and asyncio would report that as forgotten."""
    if not command.cancelled():
        command.exception()
