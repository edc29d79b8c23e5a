"""The tiers: bounds at every instant, least recently used out, restarts, damaged files."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.core.clusters import hashes
from tests.kvstore.stored import block

from banyan_core.types import BlockHash
from banyan_kvstore import block_file
from banyan_kvstore.block import Block
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.tiers import Change, Tiers
from banyan_runtime.offload import InlineOffload, ThreadOffload
from banyan_runtime.virtual_loop import run_virtual

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
H = hashes(10)
ONE = block(H[0]).num_bytes
FILE = block_file.file_bytes(block(H[0]))


def now(coro: Coroutine[Any, Any, T]) -> T:
    async def main() -> T:
        return await coro

    return run_virtual(main)


def opened(memory_bytes: int, folder: Path | None = None, disk_bytes: int = 1 << 30) -> Tiers:
    disk = None if folder is None else DiskTier(folder, disk_bytes, InlineOffload())
    tiers = Tiers(MemoryTier(memory_bytes), disk)
    now(tiers.open())
    return tiers


def put(tiers: Tiers, *wanted: BlockHash) -> Change:
    changes = [now(tiers.put(block(block_hash))) for block_hash in wanted]
    return changes[-1]


def get(tiers: Tiers, block_hash: BlockHash) -> Block | None:
    return now(tiers.get(block_hash))[0]


def path_of(folder: Path, block_hash: BlockHash) -> Path:
    name = block_hash.hex()
    return folder / name[:2] / name[2:4] / name


# ---------------------------------------------------------------- one thing at a time


def test_memory_forgets_the_least_recently_used() -> None:
    tiers = opened(2 * ONE)
    put(tiers, H[0], H[1])
    assert get(tiers, H[0]) == block(H[0])
    assert put(tiers, H[2]) == Change((H[2],), (H[1],))
    assert set(tiers.hashes()) == {H[0], H[2]}


def test_a_block_stored_twice_is_stored_once() -> None:
    tiers = opened(2 * ONE)
    put(tiers, H[0])
    assert put(tiers, H[0]) == Change()


def test_full_memory_moves_to_disk_and_nothing_is_lost(tmp_path: Path) -> None:
    tiers = opened(ONE, tmp_path)
    assert put(tiers, *H[:4]) == Change((H[3],), ())
    assert sorted(tiers.hashes()) == sorted(H[:4])
    assert [get(tiers, one) for one in H[:4]] == [block(one) for one in H[:4]]
    memory, disk = tiers.figures()
    assert (memory.num_blocks, disk.num_hits) == (1, 4)


def test_a_block_read_from_disk_is_in_memory_again(tmp_path: Path) -> None:
    tiers = opened(ONE, tmp_path)
    put(tiers, H[0], H[1])
    get(tiers, H[0])
    shutil.rmtree(path_of(tmp_path, H[0]).parent)
    assert get(tiers, H[0]) == block(H[0])


def test_full_disk_forgets_its_oldest(tmp_path: Path) -> None:
    tiers = opened(ONE, tmp_path, disk_bytes=2 * FILE)
    assert put(tiers, H[0], H[1], H[2]) == Change((H[2],), ())
    assert put(tiers, H[3]) == Change((H[3],), (H[0],))
    assert not path_of(tmp_path, H[0]).exists()


def test_what_is_too_large_for_memory_goes_to_disk(tmp_path: Path) -> None:
    large = block(H[0], page_bytes=1000)
    tiers = opened(ONE, tmp_path, disk_bytes=3000)
    assert now(tiers.put(large)) == Change((H[0],), ())
    assert get(tiers, H[0]) == large
    assert now(tiers.put(block(H[1], page_bytes=2000))) == Change((), (H[1],))
    assert now(opened(ONE).put(large)) == Change()


def test_disk_survives_a_restart_with_its_order_of_use(tmp_path: Path) -> None:
    tiers = opened(0, tmp_path)
    put(tiers, *H[:3])
    for age, block_hash in enumerate((H[2], H[0], H[1])):
        os.utime(path_of(tmp_path, block_hash), ns=(age, age))
    again = opened(0, tmp_path, disk_bytes=3 * FILE)
    assert again.hashes() == (H[2], H[0], H[1])
    assert put(again, H[3]).removed == (H[2],)
    assert get(again, H[1]) == block(H[1])


def test_a_flush_brings_memory_to_disk(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path)
    put(tiers, *H[:3])
    assert opened(5 * ONE, tmp_path).hashes() == ()
    now(tiers.flush())
    assert sorted(opened(5 * ONE, tmp_path).hashes()) == sorted(H[:3])


def test_a_smaller_limit_after_a_restart_holds(tmp_path: Path) -> None:
    put(opened(0, tmp_path), *H[:4])
    again = opened(0, tmp_path, disk_bytes=2 * FILE)
    assert len(again.hashes()) == 2
    assert again.figures()[1].used_bytes == 2 * FILE


@pytest.mark.parametrize("damage", ["truncate", "empty", "header", "swap", "page", "stray"])
def test_a_damaged_file_is_never_served(tmp_path: Path, damage: str) -> None:
    put(opened(0, tmp_path), H[0], H[1])
    path = path_of(tmp_path, H[0])
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        path.write_bytes(b"X" + content[1:])
    elif damage == "swap":
        path.write_bytes(path_of(tmp_path, H[1]).read_bytes())
    elif damage == "page":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.with_name("notes.txt").write_text("not a block")
        path.unlink()
    again = opened(0, tmp_path)
    found, change = now(again.get(H[0]))
    assert found is None
    assert change.removed == ((H[0],) if damage == "page" else ())
    assert again.figures()[1].num_damaged == 1
    assert not path.exists()
    assert get(again, H[1]) == block(H[1])


def test_a_write_cut_short_leaves_nothing(tmp_path: Path) -> None:
    put(opened(0, tmp_path), H[0])
    (tmp_path / "scratch" / H[1].hex()).write_bytes(b"half a blo")
    assert opened(0, tmp_path).hashes() == (H[0],)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_disk_that_cannot_be_written_loses_the_block_and_no_bytes(tmp_path: Path) -> None:
    tiers = opened(ONE, tmp_path)
    put(tiers, H[0])
    (tmp_path / "scratch").rmdir()
    assert put(tiers, H[1]) == Change((H[1],), (H[0],))
    assert tiers.figures()[1].used_bytes == 0


def test_new_blocks_are_copied_to_disk_and_survive_a_kill(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path)
    put(tiers, *H[:3])
    assert tiers.num_uncopied == 3
    assert now(tiers.copy_one()) == Change()
    assert opened(5 * ONE, tmp_path).hashes() == (H[0],)
    now(tiers.copy_one())
    now(tiers.copy_one())
    assert tiers.num_uncopied == 0
    again = opened(5 * ONE, tmp_path)
    assert [get(again, one) for one in H[:3]] == [block(one) for one in H[:3]]
    assert again.num_uncopied == 0


def test_nothing_is_copied_twice(tmp_path: Path) -> None:
    tiers = opened(ONE, tmp_path)
    put(tiers, H[0], H[1])  # H[0] was moved out: it is on disk
    get(tiers, H[0])
    assert tiers.num_uncopied == 0
    put(tiers, H[2])
    now(tiers.flush())
    assert tiers.num_uncopied == 0


def test_without_a_disk_nothing_waits_to_be_copied() -> None:
    tiers = opened(2 * ONE)
    put(tiers, *H[:3])
    assert tiers.num_uncopied == 0


def test_what_a_copy_pushes_off_the_disk_is_told(tmp_path: Path) -> None:
    put(opened(0, tmp_path), H[0], H[1])
    tiers = opened(5 * ONE, tmp_path, disk_bytes=2 * FILE)
    put(tiers, H[2])
    assert now(tiers.copy_one()) == Change(removed=(H[0],))
    assert set(tiers.hashes()) == {H[1], H[2]}


def test_a_disk_smaller_than_memory_is_not_written_for_ever(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path, disk_bytes=FILE)
    put(tiers, *H[:4])
    for _ in range(4):
        assert now(tiers.copy_one()) == Change(), "all are in memory still"
    assert tiers.num_uncopied == 0
    assert opened(0, tmp_path).hashes() == (H[3],)


def test_a_copy_of_what_memory_uses_stays_on_disk(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path, disk_bytes=2 * FILE)
    put(tiers, H[0], H[1], H[2])
    now(tiers.copy_one())
    now(tiers.copy_one())
    get(tiers, H[0])
    now(tiers.copy_one())
    assert set(opened(0, tmp_path).hashes()) == {H[0], H[2]}


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
    copying = asyncio.ensure_future(tiers.copy_one())
    await asyncio.sleep(0)
    async with asyncio.timeout(1.0):
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
    for one in H[:4]:
        await tiers.put(block(one))
    await tiers.copy_one()  # H[0] is moved out without a write, H[1] is not
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


def file_sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("??/??/*")]


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


# ---------------------------------------------------------------- anything at any time


class TiersMachine(RuleBasedStateMachine):
    """Random puts, gets and restarts; what the store tells adds up to what it has."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.told: set[BlockHash] = set()
        self.tiers = opened(3 * ONE, self.folder, disk_bytes=4 * FILE)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _tell(self, change: Change) -> None:
        self.told |= set(change.stored)
        self.told -= set(change.removed)

    @rule(place=st.integers(0, len(H) - 1))
    def put(self, place: int) -> None:
        change = now(self.tiers.put(block(H[place])))
        self._tell(change)
        assert H[place] in self.tiers

    @rule(place=st.integers(0, len(H) - 1))
    def get(self, place: int) -> None:
        there = H[place] in self.tiers
        found, change = now(self.tiers.get(H[place]))
        self._tell(change)
        assert (found == block(H[place])) if there else (found is None)

    @precondition(lambda self: self.tiers.num_uncopied)
    @rule()
    def copy(self) -> None:
        before = self.tiers.num_uncopied
        self._tell(now(self.tiers.copy_one()))
        assert self.tiers.num_uncopied == before - 1

    @rule(is_clean=st.booleans())
    def restart(self, is_clean: bool) -> None:
        before = set(self.tiers.hashes())
        if is_clean:
            now(self.tiers.flush())
        kept = {bytes.fromhex(path.name) for path in self.folder.glob("??/??/*")}
        self.tiers = opened(3 * ONE, self.folder, disk_bytes=4 * FILE)
        self.told = set(self.tiers.hashes())
        assert self.told == kept <= before

    @invariant()
    def bounds_hold(self) -> None:
        for figures in self.tiers.figures():
            assert 0 <= figures.used_bytes <= figures.limit_bytes

    @invariant()
    def nothing_but_what_waits_would_be_lost_while_disk_has_room(self) -> None:
        memory, disk = self.tiers.figures()
        only_in_memory = len(self.tiers.hashes()) - disk.num_blocks
        assert self.tiers.num_uncopied <= memory.num_blocks
        if disk.num_evictions == 0:
            assert only_in_memory == self.tiers.num_uncopied

    @invariant()
    def told_is_true(self) -> None:
        assert self.told == set(self.tiers.hashes())

    @invariant()
    def files_are_what_is_counted(self) -> None:
        sizes = file_sizes(self.folder)
        disk = self.tiers.figures()[1]
        assert (len(sizes), sum(sizes)) == (disk.num_blocks, disk.used_bytes)


TestTiersMachine = TiersMachine.TestCase
TestTiersMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
