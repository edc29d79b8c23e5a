"""The index's writer: one at a time, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.core.clusters import hashes
from tests.kvstore.stored import (
    Store,
    Stored,
    block,
    blocks_removed,
    blocks_snapshot,
    blocks_stored,
    virtually,
)

from banyan.v1 import common_pb2, events_pb2
from banyan_core.index_facts import Position
from banyan_core.types import BlockHash
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS
from banyan_runtime.kv_index import Fenced
from banyan_runtime.memory_index import MemoryKvIndex

H = hashes(8)
SOON_S = 0.5
LEASE_S = 3.5


def gone(worker_id: str, epoch: int) -> events_pb2.Event:
    worker = common_pb2.WorkerRef(worker_id=worker_id, epoch=epoch)
    return events_pb2.Event(worker_gone=events_pb2.WorkerGone(worker=worker, reason="stopped"))


def writers(*stores: Store) -> list[str]:
    return [store.store_id for store in stores if store.figure("indexing") == 1]


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


# ---------------------------------------------------------------- one writer


def test_of_two_stores_one_writes_and_the_other_takes_over() -> None:
    async def test(stored: Stored) -> None:
        first = await stored.store("kvstore-0")
        await asyncio.sleep(SOON_S)
        second = await stored.store("kvstore-1")
        await asyncio.sleep(5)
        assert writers(first, second) == ["kvstore-0"]
        worker = stored.producer("w0")
        worker.emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SOON_S)
        await first.crash()
        worker.emit(KV_EVENTS, blocks_stored(H[2:4]))
        await asyncio.sleep(LEASE_S + SOON_S)
        assert writers(second) == ["kvstore-1"]
        assert await stored.lookup(*H) == {"w0": 4}

    virtually(test)


class PausedIndex(MemoryKvIndex):
    """The view of a writer that stops between its lease and its write, and notices late."""

    resume: asyncio.Event | None = None
    num_fenced = 0

    async def replace(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        if self.resume is not None:
            await self.resume.wait()
        try:
            await super().replace(fence, holder, at, hashes, ttl_s)
        except Fenced:
            self.num_fenced += 1
            raise


class CountingIndex(MemoryKvIndex):
    """Notes the token of every write that the index took."""

    def __init__(self, stored: Stored, taken: list[int]) -> None:
        super().__init__(stored.index_server)
        self._taken = taken

    async def add(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        known = await super().add(fence, holder, at, hashes, ttl_s)
        self._taken.append(fence)
        return known

    async def remove(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        known = await super().remove(fence, holder, at, hashes, ttl_s)
        self._taken.append(fence)
        return known


def test_a_writer_that_was_paused_past_its_lease_writes_nothing() -> None:
    async def test(stored: Stored) -> None:
        paused = PausedIndex(stored.index_server)
        first = await stored.store("kvstore-0", index=paused)
        await asyncio.sleep(SOON_S)
        paused.resume = asyncio.Event()
        worker = stored.producer("w0")
        worker.emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SOON_S)
        second = await stored.store("kvstore-1")
        worker.emit(KV_EVENTS, blocks_removed(H[:2]))
        await asyncio.sleep(LEASE_S + 1)
        assert writers(second) == ["kvstore-1"]
        assert await stored.lookup(H[0]) == {}
        paused.resume.set()
        await asyncio.sleep(LEASE_S)
        assert paused.num_fenced == 1
        assert first.figure("fenced_total") == 1
        assert writers(first, second) == ["kvstore-1"]
        assert await stored.lookup(H[0]) == {}

    virtually(test)


def test_tokens_of_accepted_writes_never_go_back() -> None:
    async def test(stored: Stored) -> None:
        taken: list[int] = []
        stores = [
            await stored.store(f"kvstore-{n}", index=CountingIndex(stored, taken)) for n in range(3)
        ]
        worker = stored.producer("w0")
        for turn in range(3):
            for n in range(5):
                worker.emit(KV_EVENTS, blocks_stored(H[n : n + 1]))
                worker.emit(KV_EVENTS, blocks_removed(H[n : n + 1]))
                await asyncio.sleep(0.7)
            assert len(writers(*stores)) == 1
            await next(s for s in stores if s.figure("indexing") == 1).crash()
            stores = [store for store in stores if store.figure("indexing") != 1]
            await asyncio.sleep(LEASE_S + 1)
            assert len(taken) > 10 * turn
        assert taken == sorted(taken)
        assert len(set(taken)) == 3

    virtually(test)


# ---------------------------------------------------------------- what fails and heals


def test_an_index_that_was_away_gets_all_that_happened_meanwhile() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        worker = stored.producer("w0")
        worker.emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SOON_S)
        stored.index_server.down()
        worker.emit(KV_EVENTS, blocks_stored(H[2:4]))
        worker.emit(KV_EVENTS, blocks_removed(H[1:2]))
        await asyncio.sleep(20)
        assert store.figure("indexing") == 0
        stored.index_server.up()
        await asyncio.sleep(2)
        assert await stored.lookup(*H) == {"w0": 1}
        assert await stored.lookup(*H[2:]) == {"w0": 2}

    virtually(test)


def test_an_index_that_lost_its_content_is_written_again() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        await store.put(block(H[0]))
        stored.producer("w0").emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SOON_S)
        stored.index_server.down(lose_content=True)
        stored.index_server.up()
        assert await stored.lookup(*H) == {}
        await asyncio.sleep(2)
        assert await stored.lookup(*H) == {"w0": 2, "kvstore-0": 1}

    virtually(test)


def test_a_holder_that_the_index_lost_alone_is_written_whole_with_its_next_news() -> None:
    """As when the server had to evict it: a part of its blocks must not pass for all."""

    async def test(stored: Stored) -> None:
        await stored.store()
        worker = stored.producer("w0")
        worker.emit(KV_EVENTS, blocks_stored(H[:2]))
        await asyncio.sleep(SOON_S)
        del stored.index_server.holders()["w0"]
        worker.emit(KV_EVENTS, blocks_stored(H[2:4]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(*H) == {"w0": 4}

    virtually(test)


def test_events_that_were_lost_heal_with_the_next_snapshot() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        worker = stored.producer("w0")
        worker.emit(KV_EVENTS, blocks_stored(H[:4]))
        await asyncio.sleep(SOON_S)
        stored.lose_next(worker, blocks_removed(H[1:2]))
        worker.emit(KV_EVENTS, blocks_stored(H[5:6]))
        await asyncio.sleep(SOON_S + 1)
        assert store.figure("stale_producers") == 1
        worker.emit(KV_EVENTS, blocks_snapshot((H[0], H[5])))
        await asyncio.sleep(SOON_S + 1)
        assert store.figure("stale_producers") == 0
        assert await stored.lookup(*H) == {"w0": 1}
        assert await stored.lookup(H[5]) == {"w0": 1}

    virtually(test)


def test_a_crashed_store_is_forgotten_and_its_next_life_known() -> None:
    async def test(stored: Stored) -> None:
        first = await stored.store("kvstore-0")
        other = await stored.store("kvstore-1")
        await first.put(block(H[0]))
        await asyncio.sleep(SOON_S)
        await first.crash()
        again = await stored.store("kvstore-0")
        await asyncio.sleep(LEASE_S + 1)
        assert await stored.lookup(H[0]) == {}
        await again.put(block(H[1]))
        await asyncio.sleep(SOON_S)
        assert await stored.lookup(H[1]) == {"kvstore-0": 1}
        assert len(writers(other, again)) == 1

    virtually(test)


def test_snapshots_keep_entries_alive_past_their_time_to_live() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        await store.put(block(H[0]))
        await asyncio.sleep(1000)
        assert await stored.lookup(H[0]) == {"kvstore-0": 1}

    virtually(test)
