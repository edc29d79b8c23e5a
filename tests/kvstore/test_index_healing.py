"""An index that was away, or lost something, is right again without a hand."""

from __future__ import annotations

import asyncio

from tests.core.clusters import hashes
from tests.kvstore.stored import (
    INDEX_LEASE_S,
    SOON_S,
    Stored,
    block,
    blocks_removed,
    blocks_snapshot,
    blocks_stored,
    virtually,
    writers,
)

from banyan_runtime.bus import KV_EVENTS

H = hashes(8)


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
        await asyncio.sleep(INDEX_LEASE_S + 1)
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
