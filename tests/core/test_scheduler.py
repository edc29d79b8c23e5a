"""The scheduler alone: plans under random submits, ends and imports keep its promises."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.core.engines import BLOCK_SIZE, spec

from banyan_core.block_manager import BlockManager
from banyan_core.hashing import block_hashes
from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import EngineAdmissionPolicy, PastFuture, Watermark
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


POLICIES = (Chunked(), PrefillFirst(), DecodeFirst())
ADMISSIONS = (Watermark(), PastFuture(min_lengths=1))


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, choices of one request, steps, drafts, ends and imports at random."""

    @initialize(
        batching=st.sampled_from(POLICIES),
        admission=st.sampled_from(ADMISSIONS),
        max_draft_tokens=st.sampled_from((0, 3)),
    )
    def start(
        self,
        batching: BatchingPolicy,
        admission: EngineAdmissionPolicy,
        max_draft_tokens: int,
    ) -> None:
        self.limits = EngineLimits(
            max_step_tokens=9,
            max_running=3,
            max_draft_tokens=max_draft_tokens,
            batching=batching,
            admission=admission,
        )
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self.scheduler = Scheduler(self.blocks, self.limits)
        self.sequences: dict[str, Sequence] = {}
        self.count = 0
        self.told: dict[str, list[int]] = {}

    @rule(
        num=st.integers(1, 30),
        shared=st.booleans(),
        priority=st.integers(0, 2),
        num_choices=st.integers(1, 3),
        repeats=st.booleans(),
    )
    def submit(
        self, num: int, shared: bool, priority: int, num_choices: int, repeats: bool
    ) -> None:
        self.count += 1
        base = 0 if shared else self.count * 100
        prompt = tuple(base + i % 4 if repeats else base + i for i in range(num))
        for choice in range(num_choices):
            name = f"s{self.count}/{choice}/0"
            one = spec(name, prompt, priority=priority, max_tokens=20)
            sequence = Sequence(one, False, self.count * 10 + choice, 0, BLOCK_SIZE)
            hashes = sequence.reusable_hashes()
            if choice == 0 and self.blocks.reserve(f"import-{self.count}", hashes) is not None:
                self.blocks.commit_import(f"import-{self.count}", hashes[: self.count % 3])
                sequence.import_id = f"import-{self.count}"
            self.sequences[one.sequence_id] = sequence
            self.scheduler.add(sequence)

    @rule(steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=9))
    def run_steps(self, steps: list[tuple[int, int]]) -> None:
        for grow, num_right in steps:
            self._step(grow > 0, num_right)
            self.blocks_agree()

    def _step(self, grow: bool, num_right: int) -> None:
        planned = self.scheduler.plan(1)
        for sequence in planned.too_long:
            assert sequence.num_blocks_needed > NUM_BLOCKS
            del self.sequences[sequence.sequence_id]
        if planned.plan is None:
            assert not self.scheduler.running
            assert not self.scheduler.waiting or self.blocks.pin_names()
            return
        self._check(planned.plan)
        for item in planned.plan.items:
            sequence = self.sequences[item.sequence_id]
            known = len(item.token_ids) - item.num_draft_tokens
            drafts = item.token_ids[known:]
            right = drafts[: min(num_right, len(drafts))]
            if item.sample:
                for token_id in (*right, sequence.tokens[-4:][0]):
                    sequence.append(OutputToken(token_id))
            self.scheduler.drafts.checked(item, len(right))
            filled = self.scheduler.commit(sequence, known + len(right), 1)
            assert {one.block_hash for one in filled} <= set(
                block_hashes(sequence.tokens, BLOCK_SIZE, b"salt")
            )
            if item.sample:
                assert sequence.num_uncomputed == 1
                if not grow or len(sequence.tokens) >= sequence.num_max_tokens:
                    self._end(sequence)
        self.scheduler.observe(planned.plan, 1000)

    def _check(self, plan: StepPlan) -> None:
        assert sum(len(item.token_ids) for item in plan.items) <= 9
        assert len(self.scheduler.running) <= 3
        written: set[int] = set()
        for source, target in plan.copies:
            assert source != target and self.blocks.is_written_by_one(target)
        for sequence_id in plan.closed:
            del self.told[sequence_id]
        for item in plan.items:
            end = item.start + len(item.token_ids)
            table = self._told_table(item)
            assert item.token_ids and len(table) * BLOCK_SIZE >= end
            touched = table[item.start // BLOCK_SIZE : -(-end // BLOCK_SIZE)]
            assert written.isdisjoint(touched), "two sequences write into one block"
            written.update(touched)
            known = end - item.num_draft_tokens
            assert item.sample == (known == len(self.sequences[item.sequence_id].tokens))
            assert not item.num_draft_tokens or item.sample
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
        self.blocks.give_back(self.scheduler.remove(sequence, is_whole=True))
        del self.sequences[sequence.sequence_id]

    @precondition(lambda self: self.blocks.pin_names())
    @rule()
    def release(self) -> None:
        self.blocks.release(self.blocks.pin_names()[0])

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
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
