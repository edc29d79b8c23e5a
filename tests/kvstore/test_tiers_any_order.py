"""The tiers under random puts, gets, copies and restarts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.kvstore.stored import block
from tests.kvstore.tiered import FILE, ONE, H, file_sizes, now, opened

from banyan_core.types import BlockHash
from banyan_kvstore.tiers import Change


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
        self._tell(now(self.tiers.copy_some()))
        assert self.tiers.num_uncopied == 0

    @rule(is_clean=st.booleans())
    def restart(self, is_clean: bool) -> None:
        before = set(self.tiers.hashes())
        if is_clean:
            now(self.tiers.flush())
        kept = {bytes.fromhex(path.name) for path in self.folder.glob("blocks/??/*")}
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
