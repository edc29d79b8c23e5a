"""One suite for the index on every server that it runs on, and for its twin: fencing, epochs,
prefixes, positions, time-to-live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from banyan_core.types import BlockHash
from banyan_runtime.kv_index import Fenced, KvIndex, Loaded

from .indexed import EPOCH, TTL_S, at, blocks, fence_of, put

# ---------------------------------------------------------------- the lease


async def test_the_lease_has_one_owner(index: KvIndex) -> None:
    token = await fence_of(index)
    assert await index.acquire("store-2", 30) is None
    assert await index.acquire("store-1", 30) == token, "a renewal keeps the token"


async def test_a_new_owner_gets_a_higher_token_and_fences_the_old_one(index: KvIndex) -> None:
    old = await index.acquire("store-1", 0.05)
    assert old is not None
    holders = [f"w{n}" for n in range(12)]  # of several shards
    for holder in holders:
        await put(index, old, holder, blocks(1))
    await asyncio.sleep(0.1)
    new = await fence_of(index, "store-2")
    assert new > old
    for holder in holders:
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda h=holder: index.add(old, h, at(2), blocks(2), TTL_S),  # type: ignore[misc]
            lambda h=holder: index.remove(old, h, at(2), blocks(1), TTL_S),  # type: ignore[misc]
            lambda h=holder: index.replace(old, h, at(2), blocks(2), TTL_S),  # type: ignore[misc]
            lambda h=holder: index.set_epoch(old, h, EPOCH + 1),  # type: ignore[misc]
            lambda h=holder: index.drop_holder(old, h),  # type: ignore[misc]
        ]
        for write in writes:
            with pytest.raises(Fenced):
                await write()
    assert await index.lookup(blocks(2)) == dict.fromkeys(holders, 1)
    await index.add(new, "w1", at(2), blocks(2), TTL_S)
    assert (await index.lookup(blocks(2)))["w1"] == 2


async def test_two_writers_at_once_leave_what_the_last_one_wrote(index: KvIndex) -> None:
    """Two that believe in their lease write as fast as they can; one is stopped for good."""
    old = await index.acquire("store-1", 0.2)
    assert old is not None
    stopped = 0

    async def write(fence: int, first: int) -> None:
        nonlocal stopped
        for turn in range(60):
            try:
                await put(index, fence, f"w{turn % 6}", blocks(700, start=first))
            except Fenced:
                stopped += 1
            await asyncio.sleep(0.005)

    writer = asyncio.ensure_future(write(old, 10_000))
    await asyncio.sleep(0.25)
    await write(await fence_of(index, "store-2"), 0)
    await writer
    assert stopped > 0, "the first writer never came after the second"
    assert await index.lookup(blocks(700)) == {f"w{n}": 700 for n in range(6)}
    assert await index.lookup(blocks(1, start=10_000)) == {}


# ---------------------------------------------------------------- blocks


async def test_a_lookup_counts_to_the_first_hole(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(6)
    await put(index, fence, "whole", chain)
    await put(index, fence, "holed", chain[:2] + chain[3:])
    await put(index, fence, "late", chain[1:])
    await put(index, fence, "short", chain[:1])
    assert await index.lookup(chain) == {"whole": 6, "holed": 2, "short": 1}
    assert await index.lookup(chain[3:]) == {"whole": 3, "holed": 3, "late": 3}
    assert await index.lookup([]) == {}
    assert await index.lookup(blocks(1, start=100)) == {}


async def test_a_removed_block_is_a_hole(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(4)
    await put(index, fence, "w1", chain)
    await put(index, fence, "w2", chain)
    gone = [chain[2], *blocks(1, start=50)]
    assert await index.remove(fence, "w1", at(2), gone, TTL_S)
    assert await index.lookup(chain) == {"w1": 2, "w2": 4}


async def test_long_chains_are_counted_across_pages(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(1300)
    await put(index, fence, "whole", chain)
    await put(index, fence, "page", chain[:512])
    await put(index, fence, "second", [])
    assert await index.add(fence, "second", at(2), chain[:1000] + chain[1001:], TTL_S)
    await put(index, fence, "late", chain[512:])
    assert await index.lookup(chain) == {"whole": 1300, "page": 512, "second": 1000}


@pytest.mark.parametrize("newer", [EPOCH + 1, 10**19])
async def test_a_new_epoch_forgets_what_came_before(index: KvIndex, newer: int) -> None:
    fence = await fence_of(index)
    await put(index, fence, "w1", blocks(3))
    await index.set_epoch(fence, "w1", newer)
    assert await index.lookup(blocks(3)) == {}
    await index.replace(fence, "w1", at(1, newer), blocks(1), TTL_S)
    assert await index.lookup(blocks(3)) == {"w1": 1}
    assert await index.add(fence, "w1", at(2), blocks(3), TTL_S)
    await index.replace(fence, "w1", at(3), blocks(3), TTL_S)
    await index.set_epoch(fence, "w1", EPOCH)
    assert await index.lookup(blocks(3)) == {"w1": 1}, "an older epoch says nothing"


async def test_what_the_index_does_not_have_must_be_written_whole(index: KvIndex) -> None:
    """Or a part would pass for all."""
    fence = await fence_of(index)
    assert not await index.add(fence, "w1", at(7), blocks(1), TTL_S)
    assert not await index.remove(fence, "w1", at(7), blocks(1), TTL_S)
    await put(index, fence, "w1", blocks(2))
    assert not await index.add(fence, "w1", at(1, EPOCH + 1), blocks(3), TTL_S)
    assert await index.lookup(blocks(3)) == {"w1": 2}
    await index.drop_holder(fence, "w1")
    assert not await index.add(fence, "w1", at(8), blocks(1), TTL_S)
    assert await index.lookup(blocks(3)) == {}
    assert await index.positions() == {}


async def test_a_write_of_nothing_is_fenced_and_tells_its_position(index: KvIndex) -> None:
    fence = await fence_of(index)
    await put(index, fence, "w1", blocks(1))
    assert await index.add(fence, "w1", at(5), (), TTL_S)
    assert await index.positions() == {"w1": at(5)}
    writes: list[Awaitable[object]] = [
        index.add(fence - 1, "w1", at(6), (), TTL_S),
        index.remove(fence - 1, "w1", at(6), (), TTL_S),
        index.replace(fence - 1, "w1", at(6), (), TTL_S),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            await write
    assert await index.positions() == {"w1": at(5)}


async def test_a_replaced_holder_is_never_seen_in_part(index: KvIndex) -> None:
    fence = await fence_of(index)
    small, large = blocks(1500), blocks(2000)
    always, sometimes = large[:400], large[1600:]
    await put(index, fence, "w1", large)
    seen: set[tuple[int, int]] = set()
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            first = await index.lookup(always)
            seen.add((first.get("w1", 0), (await index.lookup(sometimes)).get("w1", 0)))

    readers = [asyncio.ensure_future(read()) for _ in range(3)]
    for _ in range(10):
        await put(index, fence, "w1", small)
        await put(index, fence, "w1", large)
    done.set()
    await asyncio.gather(*readers)
    assert seen <= {(400, 0), (400, 400)}


# ---------------------------------------------------------------- copies


async def test_a_copy_has_all_blocks_and_says_how_far_it_goes(index: KvIndex) -> None:
    fence = await fence_of(index)
    await put(index, fence, "w1", blocks(5000))
    await index.remove(fence, "w1", at(8, stale=True), blocks(2), TTL_S)
    await index.replace(fence, "w2", at(3), [], TTL_S)
    assert await index.positions() == {"w1": at(8, stale=True), "w2": at(3)}
    loaded = await index.load("w1")
    assert loaded is not None
    assert loaded.at == at(8, stale=True)
    assert set(loaded.hashes) == set(blocks(4998, start=2))
    assert await index.load("w2") == Loaded(at(3), ())
    assert await index.load("nobody") is None


async def test_a_copy_made_while_it_changes_is_right_after_the_later_events(
    index: KvIndex,
) -> None:
    """The argument that copies rest on: position first, then blocks; later events do no harm."""
    fence = await fence_of(index)
    pool = blocks(6000)
    await put(index, fence, "w1", pool[:5000])
    truth = dict.fromkeys(pool[:5000])
    story: dict[int, tuple[bool, list[BlockHash]]] = {}
    copies: list[Loaded] = []
    done = asyncio.Event()

    async def copy() -> None:
        while not done.is_set():
            loaded = await index.load("w1")
            if loaded is not None:
                copies.append(loaded)

    copier = asyncio.ensure_future(copy())
    for seq in range(2, 150):
        story[seq] = (seq % 2 == 0, pool[seq * 37 % 5900 :][:40])
        tell(truth, *story[seq])
        write = index.add if story[seq][0] else index.remove
        assert await write(fence, "w1", at(seq), story[seq][1], TTL_S)
    done.set()
    await copier
    assert copies
    for loaded in copies:
        held = dict.fromkeys(loaded.hashes)
        for seq in range(loaded.at.seq + 1, 150):
            tell(held, *story[seq])
        assert held.keys() == truth.keys()


def tell(held: dict[BlockHash, None], stored: bool, hashes: list[BlockHash]) -> None:
    for one in hashes:
        if stored:
            held[one] = None
        else:
            held.pop(one, None)


# ---------------------------------------------------------------- time


async def test_a_holder_ends_with_its_time(index: KvIndex) -> None:
    fence = await fence_of(index)
    await index.replace(fence, "w1", at(1), blocks(2), 1.5)
    await index.replace(fence, "w2", at(1), blocks(1), 1.5)
    assert await index.lookup(blocks(2)) == {"w1": 2, "w2": 1}
    assert await index.add(fence, "w2", at(2), (), TTL_S), "each write renews its holder"
    await asyncio.sleep(1.6)
    assert await index.lookup(blocks(2)) == {"w2": 1}
    assert await index.positions() == {"w2": at(2)}
    assert not await index.add(fence, "w1", at(2), blocks(1), TTL_S)
