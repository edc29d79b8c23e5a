"""Calls of the tiers that overlap, and calls broken off: bounds at every instant, true counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
from tests.kvstore.stored import block
from tests.kvstore.tiered import FILE, ONE, H, file_sizes, now, opened, put

from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.tiers import Change, Tiers
from banyan_runtime.offload import InlineOffload, ThreadOffload

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class GatedOffload(InlineOffload):
    """Does nothing before it is let."""

    def __init__(self) -> None:
        self.may_go = asyncio.Event()

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        await self.may_go.wait()
        return await super().run(function, *args)


async def test_a_put_with_room_in_memory_waits_for_no_file(tmp_path: Path) -> None:
    offload = GatedOffload()
    offload.may_go.set()
    tiers = Tiers(MemoryTier(3 * ONE), DiskTier(tmp_path, 9 * FILE, offload))
    await tiers.open()
    offload.may_go.clear()
    assert await tiers.put(block(H[0])) == Change((H[0],))
    copying = asyncio.ensure_future(tiers.copy_some())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await tiers.put(block(H[1])) == Change((H[1],))
        assert await tiers.put(block(H[1])) == Change()
    assert not copying.done()
    offload.may_go.set()
    await copying
    assert tiers.num_uncopied == 1


async def test_a_block_that_comes_in_two_sizes_at_once_is_counted_once(tmp_path: Path) -> None:
    """A hash does not prove its pages; the small one slips in while the large one makes room."""
    offload = GatedOffload()
    offload.may_go.set()
    tiers = Tiers(MemoryTier(4 * ONE), DiskTier(tmp_path, 9 * FILE, offload))
    await tiers.open()
    await tiers.put(block(H[0]))
    await tiers.copy_some()  # H[0] is moved out without a write, H[1] is not
    for one in H[1:4]:
        await tiers.put(block(one))
    offload.may_go.clear()
    large = asyncio.ensure_future(tiers.put(block(H[4], page_bytes=200)))
    await asyncio.sleep(0.01)
    assert await tiers.put(block(H[4])) == Change((H[4],))
    offload.may_go.set()
    await large
    assert await tiers.get(H[4]) == (block(H[4]), Change())
    memory, _ = tiers.figures()
    assert memory.used_bytes == memory.num_blocks * ONE <= memory.limit_bytes


def test_reading_what_just_came_into_memory_moves_nothing_out(tmp_path: Path) -> None:
    tiers = opened(2 * ONE, tmp_path)
    put(tiers, *H[:3])  # H[0] is on disk only

    async def at_once() -> None:
        await asyncio.gather(tiers.get(H[0]), tiers.get(H[0]))

    now(at_once())
    assert tiers.figures()[0].num_evictions == 2, "one for H[2], one for H[0]"


async def test_a_call_broken_off_in_mid_write_leaves_true_counts(tmp_path: Path) -> None:
    offload = GatedOffload()
    offload.may_go.set()
    tiers = Tiers(MemoryTier(ONE), DiskTier(tmp_path, 2 * FILE, offload))
    await tiers.open()
    for one in H[:3]:
        await tiers.put(block(one))
    offload.may_go.clear()
    for call in (tiers.put(block(H[3])), tiers.get(H[1])):
        broken = asyncio.ensure_future(call)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        broken.cancel()
        with pytest.raises(asyncio.CancelledError):
            await broken
    offload.may_go.set()
    await tiers.flush()
    sizes = file_sizes(tmp_path)
    disk = tiers.figures()[1]
    assert (len(sizes), sum(sizes)) == (disk.num_blocks, disk.used_bytes)
    assert disk.used_bytes <= disk.limit_bytes
    assert H[3] in tiers


async def test_threads_and_crowds_keep_every_block_whole(tmp_path: Path) -> None:
    """The real offload, many calls at once: what is answered is right, and bounds hold."""
    offload = ThreadOffload(4)
    tiers = Tiers(MemoryTier(2 * ONE), DiskTier(tmp_path, 5 * FILE, offload))
    await tiers.open()

    async def one(number: int) -> None:
        block_hash = H[number % len(H)]
        await tiers.put(block(block_hash))
        found, _ = await tiers.get(block_hash)
        assert found is None or found == block(block_hash)
        assert all(figures.used_bytes <= figures.limit_bytes for figures in tiers.figures())

    await asyncio.gather(*(one(number) for number in range(100)))
    await offload.close()
