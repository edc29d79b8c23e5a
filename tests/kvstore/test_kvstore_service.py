"""The store's verbs over the in-memory mesh."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.core.clusters import hashes
from tests.kvstore.stored import Stored, block, pages_of, virtually

from banyan.v1 import kv_pb2
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime import wire
from banyan_runtime.memory_bus import MemoryBus
from banyan_runtime.rpc import Code, RpcError

H = hashes(8)


def test_what_was_put_comes_back_with_its_digests() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        response = await store.put(block(H[0]), block(H[1]))
        assert (response.num_stored_blocks, response.num_rejected_pages) == (2, 0)
        messages = await store.get(H[0], H[1])
        got = [page for message in messages for page in message.pages]
        assert got == pages_of([block(H[0]), block(H[1])])

    virtually(test)


def test_get_and_has_end_at_the_first_hole() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        await store.put(block(H[0]), block(H[1]), block(H[3]))
        assert await store.has(*H[:5]) == 2
        assert await store.has(H[3]) == 1
        assert await store.has() == 0
        (message,) = await store.get(*H[:5])
        assert [page.block_hash for page in message.pages] == [H[0], H[0], H[1], H[1]]
        assert await store.get(H[2], H[3]) == []

    virtually(test)


def test_a_large_answer_comes_in_messages_of_a_megabyte() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        blocks = [block(one, page_bytes=400_000) for one in H[:4]]
        await store.put(*blocks)
        messages = await store.get(*H[:4])
        sizes = [sum(len(page.data) for page in message.pages) for message in messages]
        assert max(sizes) <= 1 << 20
        assert len(messages) == 4
        assert [page for message in messages for page in message.pages] == pages_of(blocks)

    virtually(test)


def test_a_page_that_does_not_match_its_digest_spoils_its_block_only() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        pages = pages_of([block(H[0]), block(H[1])])
        pages[0].data = pages[0].data[:-1] + b"?"
        response = await store.put_pages(pages)
        assert (response.num_stored_blocks, response.num_rejected_pages) == (1, 1)
        assert await store.has(H[0]) == 0
        assert await store.has(H[1]) == 1
        assert store.figure("rejected_pages_total") == 1
        assert (await store.put(block(H[0]))).num_stored_blocks == 1

    virtually(test)


def test_a_page_that_comes_after_a_bad_one_does_not_mend_the_block() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        good = pages_of([block(H[0])])
        bad = kv_pb2.KvPage()
        bad.CopyFrom(good[1])
        bad.digest = bytes(16)
        response = await store.put_pages([good[0], bad, good[0], good[1]])
        assert (response.num_stored_blocks, response.num_rejected_pages) == (0, 1)

    virtually(test)


def test_a_block_that_is_not_whole_is_not_stored() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        response = await store.put_pages(pages_of([block(H[0])])[:1])
        assert response.num_stored_blocks == 0
        assert await store.has(H[0]) == 0

    virtually(test)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_hash", b"short", "block_hash has 5 bytes, expected 16"),
        ("num_layers", 0, "num_layers is 0, expected 1 to 1024"),
        ("num_layers", 5000, "num_layers is 5000, expected 1 to 1024"),
        ("layer", 2, "layer 2 of 2 layers"),
        ("data", b"", "data is empty"),
    ],
)
def test_a_malformed_page_is_told_what_is_wrong(field: str, value: object, message: str) -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store()
        (page, _) = pages_of([block(H[0])])
        setattr(page, field, value)
        with pytest.raises(RpcError) as caught:
            await store.put_pages([page])
        assert (caught.value.code, caught.value.message) == (Code.INVALID, message)

    virtually(test)


def test_bytes_under_way_are_bounded_and_given_back() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(max_inflight_bytes=450)
        with pytest.raises(RpcError) as caught:
            await store.put(block(H[0], page_bytes=100, num_layers=5))
        assert caught.value.code is Code.EXHAUSTED
        assert store.figure("refused_puts_total") == 1
        # Each in turn fits, for what was refused, rejected, doubled or left half is given back.
        spoilt = pages_of([block(H[1])])
        spoilt[1].digest = bytes(16)
        await store.put_pages([*spoilt, spoilt[0]])
        await store.put_pages([*pages_of([block(H[2])])[:1] * 2])
        for one in H:
            await store.put(block(one), block(one))
        response = await store.put(block(b"x" * 16, page_bytes=100, num_layers=4))
        assert response.num_stored_blocks == 1

    virtually(test)


def test_a_put_that_is_broken_off_leaves_nothing_reserved() -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(max_inflight_bytes=200)
        stuck = asyncio.Event()

        async def requests() -> AsyncIterator[kv_pb2.KvPages]:
            yield kv_pb2.KvPages(pages=pages_of([block(H[0])])[:1])
            stuck.set()
            await asyncio.sleep(3600)

        async def never_ending() -> None:
            channel = stored.worker.channel("kvstore-0:1")
            await channel.upload(wire.STORE_PUT, requests(), 3600.0)

        task = asyncio.get_running_loop().create_task(never_ending())
        await stuck.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert (await store.put(block(H[1]))).num_stored_blocks == 1

    virtually(test)


def test_a_malformed_list_of_hashes_is_refused() -> None:
    async def test(stored: Stored) -> None:
        await stored.store()
        request = kv_pb2.HasRequest(block_hashes=b"odd")
        with pytest.raises(RpcError) as caught:
            await stored.worker.channel("kvstore-0:1").unary(wire.STORE_HAS, request, 1.0)
        assert caught.value.code is Code.INVALID

    virtually(test)


def test_stats_and_figures_tell_of_both_tiers(tmp_path: Path) -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(memory_bytes=400, folder=tmp_path, disk_bytes=10_000)
        await store.put(*(block(one) for one in H[:3]))
        await store.get(H[0], H[7])
        await asyncio.sleep(0.1)  # until all is copied
        stats = await store.stats()
        assert [(tier.tier, tier.num_blocks, tier.limit_bytes) for tier in stats.tiers] == [
            ("memory", 2, 400),
            ("disk", 3, 10_000),
        ]
        assert stats.indexing
        assert stats.epoch == store.service.epoch
        assert store.figure("blocks", tier="memory") == 2
        assert store.figure("hits_total", tier="disk") == 1
        assert store.figure("misses_total") == 1

    virtually(test)


def test_a_stopped_store_has_everything_after_its_restart(tmp_path: Path) -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(folder=tmp_path)
        await store.put(block(H[0]), block(H[1]))
        await store.stop()
        stored.mesh.crash("kvstore-0")
        again = await stored.store(folder=tmp_path)
        assert await again.has(H[0], H[1]) == 2
        assert await again.get(H[1]) == [kv_pb2.KvPages(pages=pages_of([block(H[1])]))]

    virtually(test)


def test_a_killed_store_has_what_it_was_given_a_moment_before(tmp_path: Path) -> None:
    async def test(stored: Stored) -> None:
        store = await stored.store(folder=tmp_path)
        await store.put(block(H[0]), block(H[1]))
        await asyncio.sleep(0.1)
        assert store.figure("uncopied_blocks") == 0
        again = await stored.store("kvstore-1", folder=tmp_path)  # nobody stopped the first one
        assert await again.has(H[0], H[1]) == 2

    virtually(test)


def test_what_copies_push_off_the_disk_leaves_the_index(tmp_path: Path) -> None:
    async def test(stored: Stored) -> None:
        first = await stored.store(folder=tmp_path)
        await first.put(block(H[0]), block(H[1]))
        await asyncio.sleep(0.1)  # the index's writer waits for more before it writes
        await first.stop()
        stored.mesh.crash("kvstore-0")
        two_files = first.figure("used_bytes", tier="disk")
        assert two_files is not None
        again = await stored.store(folder=tmp_path, disk_bytes=int(two_files))
        await asyncio.sleep(0.1)
        assert (await stored.lookup(H[0]))["kvstore-0"] == 1
        await again.put(block(H[2]))
        await asyncio.sleep(4.0)  # the index's lease changes hands; the next snapshot is later
        assert (await again.has(H[0]), await again.has(H[2])) == (0, 1)
        assert "kvstore-0" not in await stored.lookup(H[0])

    virtually(test)


def test_a_store_must_be_known_as_one() -> None:
    async def test(stored: Stored) -> None:
        with pytest.raises(ValueError, match="store_id 'shelf' must start with 'kvstore-'"):
            KvStoreService(
                "shelf",
                "shelf:1",
                stored.worker,
                MemoryBus(stored.broker),
                stored.index,
                stored.clock,
                Tiers(MemoryTier(1), None),
                KvStoreOptions(),
                logger=logging.getLogger("test"),
                registry=CollectorRegistry(),
            )

    virtually(test)
