"""A real server with bus and index in it is flushed, and restarted empty: the index and a router's
copy of it come back by themselves, from what the producer says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from banyan_core.hashing import block_hashes
from banyan_core.types import BlockHash, Role, WorkerRef
from banyan_kvstore.indexer import Indexer, IndexerOptions
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.metrics import KvStoreMetrics
from banyan_kvstore.tiers import Tiers
from banyan_router.metrics import RouterMetrics
from banyan_router.prefixes import Prefixes
from banyan_runtime.bus import EventProducer
from banyan_runtime.clock import SystemClock
from banyan_runtime.kv_index import IndexUnavailable
from banyan_runtime.lifespan import Tasks
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.valkey_bus import ValkeyBus
from banyan_text.card import echo_card
from banyan_worker.options import WorkerOptions
from banyan_worker.worker_events import WorkerEvents

from .redis_servers import Server, serve

LOGGER = logging.getLogger("test")
H = block_hashes(range(320), 16, b"salt")
REPAIRED_S = 20.0


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(request.param) as started:
        if started is None:
            pytest.skip("redis-server is not on PATH")
        assert isinstance(started, Server)
        yield started


@dataclass
class Parts:
    """What a worker, a store and a router have to do with the index."""

    worker: WorkerEvents
    held: list[BlockHash]
    index: RedisKvIndex
    prefixes: Prefixes

    def fill(self, *hashes: BlockHash) -> None:
        self.held.extend(hashes)
        self.worker.blocks_filled(hashes)

    async def knows(self, count: int) -> bool:
        """Whether the index and the router's copy both have so many blocks of the worker."""
        try:
            in_index = dict(await self.index.lookup(H))
        except IndexUnavailable:
            return False
        in_copy = dict((await self.prefixes.find(H)).num_blocks)
        return in_index == in_copy == {"prefill-0": count}

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(REPAIRED_S):
            while not await self.knows(count):  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.05)


@pytest.fixture
async def parts(server: Server) -> AsyncIterator[Parts]:
    clock = SystemClock()
    held: list[BlockHash] = []
    tasks = Tasks()
    async with AsyncExitStack() as opened:
        buses = [ValkeyBus(server.url) for _ in range(3)]
        indexes = [RedisKvIndex(server.url) for _ in range(3)]
        for bus in buses:
            opened.push_async_callback(bus.close)
        for index in indexes:
            opened.push_async_callback(index.close)
        worker = WorkerEvents(
            WorkerRef("prefill-0", 1, "nowhere:1", Role.PREFILL),
            echo_card(16, "deterministic"),
            len(H),
            EventProducer(buses[0], clock, "prefill-0", 1),
            clock,
            WorkerOptions(snapshot_interval_s=1.0),
            lambda: tuple(held),
        )
        metrics = KvStoreMetrics(CollectorRegistry(), Tiers(MemoryTier(1), None))
        options = IndexerOptions(lease_s=0.6)
        writer = Indexer("kvstore-0/1", buses[1], indexes[0], clock, metrics, LOGGER, options)
        figures = RouterMetrics(CollectorRegistry())
        prefixes = Prefixes(buses[2], indexes[1], clock, figures, LOGGER)
        writer.start(tasks)
        prefixes.start(tasks)
        tasks.spawn("worker", worker.tell_blocks())
        yield Parts(worker, held, indexes[2], prefixes)
        await tasks.cancel_all()


async def test_a_flushed_server_is_filled_again(server: Server, parts: Parts) -> None:
    parts.fill(*H[:10])
    await parts.wait(10)
    with server.client() as client:
        client.flushall()
    await parts.wait(10)
    parts.fill(*H[10:15])
    await parts.wait(15)


async def test_a_server_that_restarts_empty_is_filled_again(server: Server, parts: Parts) -> None:
    parts.fill(*H[:10])
    await parts.wait(10)
    server.down()
    parts.fill(*H[10:12])
    await asyncio.sleep(1.0)
    assert dict((await parts.prefixes.find(H)).num_blocks) == {"prefill-0": 10}
    server.up()
    await parts.wait(12)
