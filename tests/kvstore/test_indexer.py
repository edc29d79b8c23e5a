"""What is said on the bus comes into the index, whoever says it."""

from __future__ import annotations

import asyncio

from tests.core.clusters import hashes
from tests.kvstore.stored import (
    SOON_S,
    Stored,
    block,
    blocks_removed,
    blocks_snapshot,
    blocks_stored,
    virtually,
)

from banyan.v1 import common_pb2, events_pb2
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS

H = hashes(8)


def gone(worker_id: str, epoch: int) -> events_pb2.Event:
    worker = common_pb2.WorkerRef(worker_id=worker_id, epoch=epoch)
    return events_pb2.Event(worker_gone=events_pb2.WorkerGone(worker=worker, reason="stopped"))


def test_what_workers_and_stores_say_is_in_the_index() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        stored.producer("w0").emit(KV_EVENTS, blocks_stored(H[:3]))
        await store.put(block(H[0]), block(H[1]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(*H) == {"w0": 3, "kvstore-0": 2}

    virtually(test)


def test_removals_epochs_and_departures_reach_the_index() -> None:
    async def test(stored: Stored) -> None:
        await stored.store()
        first, other = stored.producer("w0"), stored.producer("w1")
        first.emit(KV_EVENTS, blocks_stored(H[:3]))
        other.emit(KV_EVENTS, blocks_stored(H[:2]))
        first.emit(KV_EVENTS, blocks_removed(H[1:2]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(*H) == {"w0": 1, "w1": 2}
        stored.producer("w0", epoch=2).emit(KV_EVENTS, blocks_stored(H[:1]))
        other.emit(WORKER_EVENTS, gone("w1", 1))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(*H) == {"w0": 1}

    virtually(test)


def test_blocks_that_a_store_forgets_leave_the_index() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(memory_bytes=200)
        await store.put(block(H[0]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(H[0]) == {"kvstore-0": 1}
        await store.put(block(H[1]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(H[0]) == {}
        assert await stored.lookup(H[1]) == {"kvstore-0": 1}

    virtually(test)


def test_an_event_that_is_none_is_skipped() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        store.bus.publish(KV_EVENTS, "w0", b"\xff not protobuf")
        bad = blocks_stored(())
        bad.blocks_stored.block_hashes = b"odd"
        producer = stored.producer("w0")
        producer.emit(KV_EVENTS, bad)
        producer.emit(KV_EVENTS, blocks_snapshot(H[:1]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(H[0]) == {"w0": 1}

    virtually(test)


def test_a_fresh_indexer_reads_what_the_bus_retains() -> None:
    async def test(stored: Stored) -> None:
        stored.producer("w0").emit(KV_EVENTS, blocks_stored(H[:3]))
        await asyncio.sleep(SOON_S)
        await stored.store()
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(*H) == {"w0": 3}

    virtually(test)
