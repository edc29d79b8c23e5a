"""Of all stores one writes the index, whoever of them is paused, dies or believes in its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.core.clusters import hashes
from tests.kvstore.stored import (
    INDEX_LEASE_S,
    SOON_S,
    Stored,
    blocks_removed,
    blocks_stored,
    virtually,
    writers,
)

from banyan_core.index_facts import Position
from banyan_core.types import BlockHash
from banyan_runtime.bus import KV_EVENTS
from banyan_runtime.kv_index import Fenced
from banyan_runtime.memory_index import MemoryKvIndex

H = hashes(8)


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
        await asyncio.sleep(INDEX_LEASE_S + SOON_S)
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
        await asyncio.sleep(INDEX_LEASE_S + 1)
        assert writers(second) == ["kvstore-1"]
        assert await stored.lookup(H[0]) == {}
        paused.resume.set()
        await asyncio.sleep(INDEX_LEASE_S)
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
            await asyncio.sleep(INDEX_LEASE_S + 1)
            assert len(taken) > 10 * turn
        assert taken == sorted(taken)
        assert len(set(taken)) == 3

    virtually(test)
