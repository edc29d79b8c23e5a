"""The block manager against a model of plain counts, whatever the order of operations."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from banyan_core.block_manager import BlockManager


def chain(seed: int, length: int) -> list[bytes]:
    return [b"%04d%012d" % (seed, index) for index in range(length)]


def filled(blocks: BlockManager, hashes: list[bytes]) -> list[int]:
    table = blocks.allocate(len(hashes))
    assert table is not None
    for block_id, block_hash in zip(table, hashes, strict=True):
        assert blocks.fill(block_id, block_hash)
    return table


def test_cached_blocks_are_evicted_oldest_chain_first_and_tail_first() -> None:
    blocks = BlockManager(4, 16)
    old, new = chain(1, 2), chain(2, 2)
    old_table, new_table = filled(blocks, old), filled(blocks, new)
    blocks.give_back(old_table)
    blocks.give_back(new_table)
    assert blocks.num_available == 4 and blocks.num_free == 0
    assert blocks.allocate(1) is not None
    assert blocks.take_evicted() == (old[1],)
    assert blocks.match(old) == old_table[:1]
    assert blocks.allocate(2) is not None
    assert blocks.take_evicted() == (old[0], new[1])


def test_a_match_ends_at_the_first_hole() -> None:
    blocks = BlockManager(8, 16)
    hashes = chain(1, 3)
    table = filled(blocks, [hashes[0], hashes[2]])
    assert blocks.match(hashes) == table[:1]


def test_equal_content_is_known_once_and_the_copy_becomes_free() -> None:
    blocks = BlockManager(4, 16)
    first = filled(blocks, chain(1, 1))
    copy = blocks.allocate(1)
    assert copy is not None and not blocks.fill(copy[0], chain(1, 1)[0])
    blocks.give_back(copy)
    assert blocks.num_free == 3
    blocks.give_back(first)
    assert blocks.num_free == 3 and blocks.num_available == 4


def test_allocation_takes_all_or_nothing() -> None:
    blocks = BlockManager(2, 16)
    assert blocks.allocate(3) is None
    assert blocks.num_available == 2


def test_an_import_keeps_what_is_here_and_reserves_the_rest() -> None:
    blocks = BlockManager(4, 16)
    hashes = chain(1, 3)
    blocks.give_back(filled(blocks, hashes[:1]))
    reserved = blocks.reserve("import", hashes)
    assert reserved is not None and list(reserved) == hashes[1:]
    assert blocks.num_used == 3
    new = blocks.commit_import("import", hashes[1:2])
    assert [block.block_hash for block in new] == hashes[1:2]
    assert blocks.num_used == 2 and len(blocks.match(hashes)) == 2
    assert blocks.release("import") and not blocks.release("import")
    assert blocks.num_used == 0


def test_content_that_appeared_during_an_import_is_shared() -> None:
    blocks = BlockManager(4, 16)
    hashes = chain(1, 1)
    assert blocks.reserve("import", hashes) is not None
    table = filled(blocks, hashes)
    assert blocks.commit_import("import", hashes) == []
    blocks.give_back(table)
    assert blocks.num_used == 1, "the import must keep the block that holds the content"
    blocks.release("import")
    assert blocks.num_used == 0


def test_a_released_import_commits_nothing() -> None:
    blocks = BlockManager(2, 16)
    hashes = chain(1, 2)
    assert blocks.reserve("import", hashes) is not None
    blocks.release("import")
    assert blocks.commit_import("import", hashes) == []
    assert blocks.num_free == 2


def test_an_import_without_room_takes_nothing() -> None:
    blocks = BlockManager(2, 16)
    filled(blocks, chain(1, 2))
    assert blocks.reserve("import", chain(2, 1)) is None
    assert blocks.pin_names() == ()


def test_the_same_import_twice_is_an_error() -> None:
    blocks = BlockManager(2, 16)
    assert blocks.reserve("import", chain(1, 1)) is not None
    with pytest.raises(ValueError, match="already under way"):
        blocks.reserve("import", chain(1, 1))


def test_check_invariants_sees_a_reference_nobody_holds() -> None:
    blocks = BlockManager(2, 16)
    blocks.allocate(1)
    with pytest.raises(AssertionError, match="references"):
        blocks.check_invariants([])


class BlockMachine(RuleBasedStateMachine):
    """Tables, pins and imports at random; the invariants hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, 16)
        self.tables: list[list[int]] = []
        self.names: list[str] = []
        self.importing: dict[str, list[bytes]] = {}
        self.count = 0

    chains = st.builds(chain, st.integers(0, 3), st.integers(1, 5))

    @rule(hashes=chains, num_partial=st.integers(0, 2))
    def start(self, hashes: list[bytes], num_partial: int) -> None:
        cached = self.blocks.match(hashes)
        self.blocks.take(cached)
        fresh = self.blocks.allocate(len(hashes) - len(cached) + num_partial)
        if fresh is None:
            self.blocks.give_back(cached)
            return
        for block_hash, block_id in zip(hashes[len(cached) :], fresh, strict=False):
            self.blocks.fill(block_id, block_hash)
        self.tables.append(cached + fresh)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        self.blocks.give_back(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule()
    def hold(self) -> None:
        self.blocks.hold(self._name(), self.tables.pop())

    @rule(hashes=chains)
    def pin(self, hashes: list[bytes]) -> None:
        found = self.blocks.pin(self._name(), hashes)
        assert all(self.blocks.block_of(h) == i for h, i in found)

    @rule(hashes=chains)
    def reserve(self, hashes: list[bytes]) -> None:
        name = self._name()
        if self.blocks.reserve(name, hashes) is None:
            self.names.remove(name)
        else:
            self.importing[name] = hashes

    @precondition(lambda self: self.importing)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.importing)))
        hashes = self.importing.pop(name)
        imported = hashes[: data.draw(st.integers(0, len(hashes)))]
        self.blocks.commit_import(name, imported)
        assert len(self.blocks.match(imported)) == len(imported)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = self.names.pop(data.draw(st.integers(0, len(self.names) - 1)))
        self.importing.pop(name, None)
        assert self.blocks.release(name)

    def _name(self) -> str:
        self.count += 1
        self.names.append(f"name-{self.count}")
        return self.names[-1]

    @invariant()
    def counts_agree(self) -> None:
        self.blocks.check_invariants(self.tables)
        num_idle = self.blocks.num_available - self.blocks.num_free
        assert 0 <= num_idle <= len(self.blocks.hashes())
        evicted = self.blocks.take_evicted()
        assert len(set(evicted)) <= 12

    def teardown(self) -> None:
        for table in self.tables:
            self.blocks.give_back(table)
        for name in self.names:
            self.blocks.release(name)
        assert self.blocks.num_used == 0
        self.blocks.check_invariants([])


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
