"""One suite for the Redis index and its twin: fencing, epochs, prefixes, time-to-live, outages."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banyan_core.types import BlockHash
from banyan_runtime.clock import SystemClock
from banyan_runtime.kv_index import Fenced, IndexUnavailable, KvIndex
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.redis_index import RedisKvIndex

from .conftest import RestartableValkey

_PREFIXES = itertools.count()
EPOCH = 1_800_000_000_123_456_789  # an epoch as they are: more than 53 bits
TTL_S = 60.0


def blocks(count: int, start: int = 0) -> list[BlockHash]:
    return [i.to_bytes(16, "big") for i in range(start, start + count)]


@pytest.fixture(params=["memory", "redis"])
async def index(request: pytest.FixtureRequest) -> AsyncIterator[KvIndex]:
    made: KvIndex
    if request.param == "memory":
        made = MemoryKvIndex(MemoryIndexServer(SystemClock()))
    else:
        url = request.getfixturevalue("valkey_url")
        # A machine under load may take longer than the lookup's usual limit.
        made = RedisKvIndex(url, prefix=f"kv{next(_PREFIXES)}", lookup_timeout_s=5)
    yield made
    await made.close()


async def fence_of(index: KvIndex, owner: str = "store-1") -> int:
    token = await index.acquire(owner, 30)
    assert token is not None
    return token


async def test_the_lease_has_one_owner(index: KvIndex) -> None:
    token = await fence_of(index)
    assert await index.acquire("store-2", 30) is None
    assert await index.acquire("store-1", 30) == token, "a renewal keeps the token"


async def test_a_new_owner_gets_a_higher_token_and_fences_the_old_one(index: KvIndex) -> None:
    old = await index.acquire("store-1", 0.05)
    assert old is not None
    await index.add(old, "w1", EPOCH, blocks(1), TTL_S)
    await asyncio.sleep(0.1)
    new = await fence_of(index, "store-2")
    assert new > old
    writes: list[Callable[[], Awaitable[None]]] = [
        lambda: index.add(old, "w1", EPOCH, blocks(2), TTL_S),
        lambda: index.remove(old, "w1", blocks(1)),
        lambda: index.set_epoch(old, "w1", EPOCH + 1),
        lambda: index.drop_holder(old, "w1"),
    ]
    for write in writes:
        with pytest.raises(Fenced):
            await write()
    assert await index.lookup(blocks(2)) == {"w1": 1}
    await index.add(new, "w1", EPOCH, blocks(2), TTL_S)
    assert await index.lookup(blocks(2)) == {"w1": 2}


async def test_a_lookup_counts_to_the_first_hole(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(6)
    await index.add(fence, "whole", EPOCH, chain, TTL_S)
    await index.add(fence, "holed", EPOCH, chain[:2] + chain[3:], TTL_S)
    await index.add(fence, "late", EPOCH, chain[1:], TTL_S)
    await index.add(fence, "short", EPOCH, chain[:1], TTL_S)
    assert await index.lookup(chain) == {"whole": 6, "holed": 2, "short": 1}
    assert await index.lookup(chain[3:]) == {"whole": 3, "holed": 3, "late": 3}
    assert await index.lookup([]) == {}
    assert await index.lookup(blocks(1, start=100)) == {}


async def test_a_removed_block_is_a_hole(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(4)
    await index.add(fence, "w1", EPOCH, chain, TTL_S)
    await index.add(fence, "w2", EPOCH, chain, TTL_S)
    await index.remove(fence, "w1", [chain[2], *blocks(1, start=50)])
    assert await index.lookup(chain) == {"w1": 2, "w2": 4}


@pytest.mark.parametrize("newer", [EPOCH + 1, 10**19])
async def test_a_new_epoch_forgets_what_came_before(index: KvIndex, newer: int) -> None:
    fence = await fence_of(index)
    await index.add(fence, "w1", EPOCH, blocks(3), TTL_S)
    await index.set_epoch(fence, "w1", newer)
    assert await index.lookup(blocks(3)) == {}
    await index.add(fence, "w1", newer, blocks(1), TTL_S)
    assert await index.lookup(blocks(3)) == {"w1": 1}
    await index.add(fence, "w1", EPOCH, blocks(3), TTL_S)
    await index.set_epoch(fence, "w1", EPOCH)
    assert await index.lookup(blocks(3)) == {"w1": 1}, "an older epoch says nothing"


async def test_a_write_of_nothing_is_fenced_and_tells_its_epoch(index: KvIndex) -> None:
    fence = await fence_of(index)
    await index.add(fence, "w1", EPOCH, blocks(1), TTL_S)
    await index.add(fence, "w1", EPOCH + 1, (), TTL_S)
    assert await index.lookup(blocks(1)) == {}
    for write in (index.add(fence - 1, "w1", EPOCH, (), TTL_S), index.remove(fence - 1, "w1", ())):
        with pytest.raises(Fenced):
            await write


async def test_a_dropped_holder_does_not_come_back_with_its_old_blocks(index: KvIndex) -> None:
    fence = await fence_of(index)
    await index.add(fence, "w1", EPOCH, blocks(3), TTL_S)
    await index.drop_holder(fence, "w1")
    assert await index.lookup(blocks(3)) == {}
    await index.add(fence, "w1", EPOCH, blocks(1), TTL_S)
    assert await index.lookup(blocks(3)) == {"w1": 1}


async def test_entries_end_with_their_time(index: KvIndex) -> None:
    fence = await fence_of(index)
    await index.add(fence, "w1", EPOCH, blocks(2), 0.3)
    await index.add(fence, "w2", EPOCH, blocks(1), TTL_S)
    await index.add(fence, "w2", EPOCH, blocks(1), 0.01)
    assert (await index.lookup(blocks(2)))["w1"] == 2
    await asyncio.sleep(0.4)
    # Time is kept per block, not per holder: the longest wins.
    assert await index.lookup(blocks(2)) == {"w1": 1, "w2": 1}


async def test_long_chains_are_counted_across_pages(index: KvIndex) -> None:
    fence = await fence_of(index)
    chain = blocks(1300)
    await index.add(fence, "whole", EPOCH, chain, TTL_S)
    await index.add(fence, "page", EPOCH, chain[:512], TTL_S)
    await index.add(fence, "second", EPOCH, chain[:1000] + chain[1001:], TTL_S)
    await index.add(fence, "late", EPOCH, chain[512:], TTL_S)
    assert await index.lookup(chain) == {"whole": 1300, "page": 512, "second": 1000}


Step = tuple[str, str, int, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "epoch", "drop"]),
        st.sampled_from(["w1", "w2", "w3"]),
        st.integers(EPOCH, EPOCH + 2),
        st.lists(st.integers(0, 5), max_size=4),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
async def test_the_real_index_and_the_twin_agree(valkey_url: str, steps: list[Step]) -> None:
    prefix = f"agree-{os.urandom(6).hex()}"
    twin = MemoryKvIndex(MemoryIndexServer(SystemClock()))
    async with RedisKvIndex(valkey_url, prefix=prefix, lookup_timeout_s=5) as real:
        answers = [await apply_all(index, steps) for index in (twin, real)]
    assert answers[0] == answers[1]


async def apply_all(index: KvIndex, steps: list[Step]) -> list[dict[str, int]]:
    fence = await fence_of(index)
    chain, answers = blocks(6), []
    for verb, holder, epoch, places in steps:
        hashes = [chain[place] for place in places]
        if verb == "add":
            await index.add(fence, holder, epoch, hashes, TTL_S)
        elif verb == "remove":
            await index.remove(fence, holder, hashes)
        elif verb == "epoch":
            await index.set_epoch(fence, holder, epoch)
        else:
            await index.drop_holder(fence, holder)
        answers.append(dict(await index.lookup(chain)))
    return answers


@dataclass
class Outage:
    index: KvIndex
    down: Callable[[], None]
    up: Callable[[], None]


@pytest.fixture(params=["memory", "redis"])
async def outage(request: pytest.FixtureRequest) -> AsyncIterator[Outage]:
    """An index on a server of its own, which loses its content when it goes down."""
    if request.param == "memory":
        twin = MemoryIndexServer(SystemClock())
        yield Outage(MemoryKvIndex(twin), lambda: twin.down(lose_content=True), twin.up)
        return
    server: RestartableValkey = request.getfixturevalue("own_valkey")
    async with RedisKvIndex(server.url) as real:
        yield Outage(real, server.down, server.up)


async def test_every_call_fails_fast_while_the_server_is_away(outage: Outage) -> None:
    fence = await fence_of(outage.index)
    outage.down()
    async with asyncio.timeout(3):
        with pytest.raises(IndexUnavailable):
            await outage.index.lookup(blocks(3))
        with pytest.raises(IndexUnavailable):
            await outage.index.acquire("store-1", 30)
        with pytest.raises(IndexUnavailable):
            await outage.index.add(fence, "w1", EPOCH, blocks(1), TTL_S)


async def test_a_server_that_lost_its_content_fences_the_old_writer(outage: Outage) -> None:
    old = await fence_of(outage.index)
    await outage.index.add(old, "w1", EPOCH, blocks(2), TTL_S)
    outage.down()
    outage.up()
    with suppress(IndexUnavailable, Fenced):  # the old connection may have to fail first
        await outage.index.remove(old, "w1", blocks(2))
    with pytest.raises(Fenced):
        await outage.index.add(old, "w1", EPOCH, blocks(2), TTL_S)
    new = await fence_of(outage.index, "store-2")
    assert new > old
    with pytest.raises(Fenced):
        await outage.index.add(old, "w1", EPOCH, blocks(2), TTL_S)
    assert await outage.index.lookup(blocks(2)) == {}
