"""The scheduler alone: plans under random submits, ends and imports keep its promises."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.core.engines import BLOCK_SIZE, spec

from banyan_core.block_manager import BlockManager
from banyan_core.runner import PlanItem, StepPlan
from banyan_core.scheduler import EngineLimits, Scheduler
from banyan_core.sequence import Sequence
from banyan_core.types import OutputToken

NUM_BLOCKS = 10


def test_every_running_sequence_must_fit_into_a_step() -> None:
    with pytest.raises(ValueError, match="max_running: expected 1 to max_step_tokens"):
        EngineLimits(max_step_tokens=8, max_running=9)


def test_an_admission_leaves_a_block_for_each_that_runs() -> None:
    blocks = BlockManager(4, BLOCK_SIZE)
    scheduler = Scheduler(blocks, EngineLimits())
    for arrival in range(2):
        prompt = tuple(range(100 * arrival, 100 * arrival + 8))
        one = spec(f"s{arrival}", prompt)
        scheduler.add(Sequence(one, False, arrival, 0, BLOCK_SIZE))
    plan = scheduler.plan(1).plan
    assert plan is not None and [i.sequence_id for i in plan.items] == ["s0"]


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, steps, ends and imports at random."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = EngineLimits(max_step_tokens=9, max_running=3)
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(self.blocks, self.limits)
        self.sequences: dict[str, Sequence] = {}
        self.count = 0
        self.told: dict[str, list[int]] = {}

    @rule(num=st.integers(1, 30), shared=st.booleans(), priority=st.integers(0, 2))
    def submit(self, num: int, shared: bool, priority: int) -> None:
        self.count += 1
        base = 0 if shared else self.count * 100
        one = spec(f"s{self.count}", tuple(range(base, base + num)), priority=priority)
        sequence = Sequence(one, False, self.count, 0, BLOCK_SIZE)
        hashes = sequence.reusable_hashes()
        if self.blocks.reserve(f"import-{self.count}", hashes) is not None:
            self.blocks.commit_import(f"import-{self.count}", hashes[: self.count % 3])
            sequence.import_id = f"import-{self.count}"
        self.sequences[one.sequence_id] = sequence
        self.scheduler.add(sequence)

    @rule(grow=st.booleans())
    def step(self, grow: bool) -> None:
        planned = self.scheduler.plan(1)
        for sequence in planned.too_long:
            assert sequence.num_blocks_needed > NUM_BLOCKS
            del self.sequences[sequence.sequence_id]
        if planned.plan is None:
            assert not self.scheduler.running
            return
        self._check(planned.plan)
        for item in planned.plan.items:
            sequence = self.sequences[item.sequence_id]
            self.scheduler.commit(sequence, len(item.token_ids), 1)
            if item.sample:
                sequence.append(OutputToken(7))
                if not grow:
                    self._end(sequence)

    def _check(self, plan: StepPlan) -> None:
        assert sum(len(item.token_ids) for item in plan.items) <= 9
        assert len(self.scheduler.running) <= 3
        written: set[int] = set()
        for sequence_id in plan.closed:
            del self.told[sequence_id]
        for item in plan.items:
            end = item.start + len(item.token_ids)
            table = self._told_table(item)
            assert item.token_ids and len(table) * BLOCK_SIZE >= end
            touched = table[item.start // BLOCK_SIZE : -(-end // BLOCK_SIZE)]
            assert written.isdisjoint(touched), "two sequences write into one block"
            written.update(touched)
            assert item.sample == (end == len(self.sequences[item.sequence_id].tokens))
            assert table == self.sequences[item.sequence_id].block_table
        assert {*self.told} == {s.sequence_id for s in self.scheduler.running}

    def _told_table(self, item: PlanItem) -> list[int]:
        """The block table as a runner knows it, from openings and news alone."""
        if item.opening is not None:
            self.told[item.sequence_id] = list(item.opening.block_table)
        self.told[item.sequence_id] += item.new_block_ids
        return self.told[item.sequence_id]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._end(self.sequences[data.draw(st.sampled_from(sorted(self.sequences)))])

    def _end(self, sequence: Sequence) -> None:
        self.blocks.give_back(self.scheduler.remove(sequence))
        del self.sequences[sequence.sequence_id]

    @invariant()
    def blocks_agree(self) -> None:
        self.blocks.check_invariants([s.block_table for s in self.sequences.values()])
        assert self.scheduler.waiting == sorted(self.scheduler.waiting, key=lambda s: s.order)
        self.blocks.take_evicted()

    def teardown(self) -> None:
        for sequence in list(self.sequences.values()):
            self._end(sequence)
        assert self.blocks.num_used == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
