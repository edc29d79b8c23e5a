"""The index goes away, and comes back empty: what its callers see, on every server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest

from banyan_runtime.clock import SystemClock
from banyan_runtime.kv_index import Fenced, IndexUnavailable, KvIndex
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.redis_index import RedisKvIndex

from .indexed import TTL_S, at, blocks, fence_of, put
from .redis_servers import Server, serve


@dataclass
class Outage:
    index: KvIndex
    down: Callable[[], None]
    up: Callable[[], None]


@pytest.fixture(params=["memory", "valkey", "redis"])
async def outage(request: pytest.FixtureRequest) -> AsyncIterator[Outage]:
    """An index on a server of its own, which loses its content when it goes down."""
    if request.param == "memory":
        twin = MemoryIndexServer(SystemClock())
        yield Outage(MemoryKvIndex(twin), lambda: twin.down(lose_content=True), twin.up)
        return
    with serve(request.param) as server:
        if server is None:
            pytest.skip("redis-server is not on PATH")
        assert isinstance(server, Server)
        async with RedisKvIndex(server.url) as real:
            yield Outage(real, server.down, server.up)


async def test_every_call_fails_fast_while_the_server_is_away(outage: Outage) -> None:
    fence = await fence_of(outage.index)
    outage.down()
    async with asyncio.timeout(3):
        with pytest.raises(IndexUnavailable):
            await outage.index.lookup(blocks(3))
        with pytest.raises(IndexUnavailable):
            await outage.index.positions()
        with pytest.raises(IndexUnavailable):
            await outage.index.load("w1")
        with pytest.raises(IndexUnavailable):
            await outage.index.acquire("store-1", 30)
        with pytest.raises(IndexUnavailable):
            await outage.index.add(fence, "w1", at(1), blocks(1), TTL_S)


async def test_a_server_that_lost_its_content_fences_the_old_writer(outage: Outage) -> None:
    old = await fence_of(outage.index)
    await put(outage.index, old, "w1", blocks(2))
    outage.down()
    outage.up()
    with suppress(IndexUnavailable, Fenced):  # the old connection may have to fail first
        await put(outage.index, old, "w1", blocks(2))
    with pytest.raises(Fenced):
        await put(outage.index, old, "w1", blocks(2))
    new = await fence_of(outage.index, "store-2")
    assert new > old
    with pytest.raises(Fenced):
        await put(outage.index, old, "w1", blocks(2))
    assert await outage.index.lookup(blocks(2)) == {}
