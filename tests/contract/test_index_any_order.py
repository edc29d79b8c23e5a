"""The real index and its twin agree, whatever is written in whatever order."""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from banyan_runtime.clock import SystemClock
from banyan_runtime.kv_index import KvIndex
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.redis_index import RedisKvIndex

from .indexed import EPOCH, LATE_S, TTL_S, at, blocks, fence_of
from .redis_servers import Cluster, Server

Step = tuple[str, str, int, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "replace", "epoch", "drop"]),
        st.sampled_from(["w1", "w2", "w3"]),
        st.integers(EPOCH, EPOCH + 2),
        st.lists(st.integers(0, 5), max_size=4),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
async def test_the_real_index_and_the_twin_agree(
    started: Callable[[str], Server | Cluster], steps: list[Step]
) -> None:
    prefix = f"agree-{os.urandom(6).hex()}"
    twin = MemoryKvIndex(MemoryIndexServer(SystemClock()))
    url = started("valkey").url
    async with RedisKvIndex(url, prefix=prefix, lookup_timeout_s=LATE_S) as real:
        answers = [await apply_all(index, steps) for index in (twin, real)]
    assert answers[0] == answers[1]


async def apply_all(index: KvIndex, steps: list[Step]) -> list[object]:
    fence = await fence_of(index)
    chain = blocks(6)
    answers: list[object] = []
    for seq, (verb, holder, epoch, places) in enumerate(steps):
        hashes = [chain[place] for place in places]
        if verb == "add":
            answers.append(await index.add(fence, holder, at(seq, epoch), hashes, TTL_S))
        elif verb == "remove":
            answers.append(await index.remove(fence, holder, at(seq, epoch), hashes, TTL_S))
        elif verb == "replace":
            await index.replace(fence, holder, at(seq, epoch), hashes, TTL_S)
        elif verb == "epoch":
            await index.set_epoch(fence, holder, epoch)
        else:
            await index.drop_holder(fence, holder)
        answers += [dict(await index.lookup(chain)), dict(await index.positions())]
    return answers
