"""The tiers: bounds, least recently used out, copies to disk, restarts, damaged files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.kvstore.stored import block
from tests.kvstore.tiered import FILE, ONE, H, file_sizes, get, now, opened, path_of, put

from banyan_kvstore.tiers import Change


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


def test_what_an_older_version_left_is_neither_served_nor_kept(tmp_path: Path) -> None:
    old = tmp_path / "00" / "01" / H[0].hex()
    old.parent.mkdir(parents=True)
    old.write_bytes(b"BNYNKV1\n" + bytes(100))
    assert opened(0, tmp_path).hashes() == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scratch"]


def test_a_block_that_is_larger_or_smaller_than_the_one_it_pushes_out_is_whole(
    tmp_path: Path,
) -> None:
    """Its file is written over the other's."""
    tiers = opened(0, tmp_path, disk_bytes=2 * FILE)
    put(tiers, H[0], H[1])
    for block_hash, page_bytes in ((H[2], 130), (H[3], 40), (H[4], 100)):
        one = block(block_hash, page_bytes)
        now(tiers.put(one))
        disk = tiers.figures()[1]
        assert sum(file_sizes(tmp_path)) == disk.used_bytes <= disk.limit_bytes
        assert get(opened(0, tmp_path), block_hash) == one
    assert list((tmp_path / "scratch").iterdir()) == []


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


# ---------------------------------------------------------------- copies to disk


def test_new_blocks_are_copied_to_disk_and_survive_a_kill(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path)
    put(tiers, H[0])
    assert now(tiers.copy_some()) == Change()
    put(tiers, *H[1:3])
    assert tiers.num_uncopied == 2
    assert opened(5 * ONE, tmp_path).hashes() == (H[0],)
    now(tiers.copy_some())
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
    assert now(tiers.copy_some()) == Change(removed=(H[0],))
    assert set(tiers.hashes()) == {H[1], H[2]}


def test_a_disk_smaller_than_memory_is_not_written_for_ever(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path, disk_bytes=FILE)
    put(tiers, *H[:4])
    assert now(tiers.copy_some()) == Change(), "all are in memory still"
    assert tiers.num_uncopied == 0
    assert opened(0, tmp_path).hashes() == (H[3],)


def test_a_copy_of_what_memory_uses_stays_on_disk(tmp_path: Path) -> None:
    tiers = opened(5 * ONE, tmp_path, disk_bytes=2 * FILE)
    put(tiers, H[0], H[1])
    now(tiers.copy_some())
    get(tiers, H[0])
    put(tiers, H[2])
    now(tiers.copy_some())
    assert set(opened(0, tmp_path).hashes()) == {H[0], H[2]}
