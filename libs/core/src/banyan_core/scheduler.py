"""Which sequences run in the next step, and how many of their tokens.

`plan` decides and takes the blocks it needs; `commit` applies what the step computed. Running
sequences that need one token come first, so that a long prompt never stalls the others; what is
left of the token budget goes to prompts, in chunks. Order is priority, then arrival, everywhere.
When blocks run out the last in that order gives its blocks up and computes them again later
(most of it is usually still cached). A sequence is admitted only when blocks for all its known
tokens are there, and one more for each that already runs: so admissions cause few preemptions.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from banyan_core.block_manager import BlockManager, FilledBlock
from banyan_core.runner import PlanItem, StepPlan
from banyan_core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one engine.

    `max_step_tokens` is the budget of a step; each running sequence needs one of it.
    What is admitted but not yet computed is bounded: `max_waiting` sequences beyond those that
    can run at once, and prompt tokens, in number and by the time that they take at the measured
    rate: a quarter of the usual target for the first token.
    """

    max_step_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 8
    max_waiting_tokens: int = 262_144
    max_waiting_s: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.max_running <= self.max_step_tokens:
            raise ValueError(
                f"max_running: expected 1 to max_step_tokens ({self.max_step_tokens}), "
                f"got {self.max_running}"
            )


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch, or None when nothing can run; and sequences that can never run here."""

    plan: StepPlan | None
    too_long: tuple[Sequence, ...]


@dataclass(slots=True)
class SchedulerTotals:
    """Counters since the start. Queried and hit tokens are counted at each admission."""

    num_preemptions: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0


class Scheduler:
    """Owns the queues. Sequences leave by `remove` only."""

    def __init__(self, blocks: BlockManager, limits: EngineLimits) -> None:
        self._blocks = blocks
        self._limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.totals = SchedulerTotals()

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> list[int]:
        """Take a sequence out. The references of the blocks returned pass to the caller."""
        queue = self.waiting if sequence in self.waiting else self.running
        queue.remove(sequence)
        self._drop_import(sequence)
        table, sequence.block_table = sequence.block_table, []
        return table

    # ------------------------------------------------------------ plan

    def plan(self, number: int) -> Planned:
        """The next step. Takes blocks, admits and preempts; computes nothing."""
        budget = self._limits.max_step_tokens
        items: list[PlanItem] = []
        for sequence in self._decode_first():
            if budget == 0:
                break
            if sequence not in self.running or not self._grow(sequence):
                continue  # preempted for one before it, or by its own growth
            items.append(_item(sequence, budget))
            budget -= len(items[-1].token_ids)
        too_long: list[Sequence] = []
        while budget and self.waiting and len(self.running) < self._limits.max_running:
            head = self.waiting[0]
            if head.num_blocks_needed > self._blocks.num_blocks:
                too_long.append(self.waiting.pop(0))
                self._drop_import(head)
                continue
            if not self._admit(head):
                break
            items.append(_item(head, budget))
            budget -= len(items[-1].token_ids)
        return Planned(StepPlan(number, tuple(items)) if items else None, tuple(too_long))

    def _decode_first(self) -> list[Sequence]:
        return sorted(self.running, key=lambda s: (s.num_uncomputed > 1, s.order))

    def _grow(self, sequence: Sequence) -> bool:
        """Blocks for all known tokens, from others if need be. False: it gave its own up."""
        while len(sequence.block_table) < sequence.num_blocks_needed:
            block_ids = self._blocks.allocate(1)
            if block_ids is not None:
                sequence.block_table += block_ids
                continue
            if self._drop_last_import():
                continue
            victim = max(self.running, key=_order)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._blocks.give_back(victim.block_table)
        victim.block_table = []
        victim.num_computed = 0
        victim.num_preemptions += 1
        self.totals.num_preemptions += 1
        self.add(victim)

    def _admit(self, sequence: Sequence) -> bool:
        """Move the head of the queue into the batch, if its blocks can be had."""
        table = self._table_for(sequence)
        if table is None and not self.running:
            # Blocks imported for others that wait must not keep the engine idle.
            while table is None and self._drop_last_import(keep=sequence):
                table = self._table_for(sequence)
        if table is None:
            return False
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        sequence.block_table = table
        self._drop_import(sequence)
        self.totals.num_queried_tokens += len(sequence.tokens)
        self.totals.num_hit_tokens += sequence.num_computed
        return True

    def _table_for(self, sequence: Sequence) -> list[int] | None:
        cached = self._blocks.match(sequence.reusable_hashes())
        self._blocks.take(cached)
        num_new = sequence.num_blocks_needed - len(cached)
        headroom = len(self.running)
        fits = self._blocks.num_available >= num_new + headroom
        fresh = self._blocks.allocate(num_new) if fits else None
        if fresh is None:
            self._blocks.give_back(cached)
            return None
        sequence.num_computed = len(cached) * self._blocks.block_size
        return cached + fresh

    def _drop_last_import(self, keep: Sequence | None = None) -> bool:
        """Let the last who waits lose the hold on its imported blocks; False when none has one."""
        for sequence in reversed(self.waiting):
            if sequence.import_id and sequence is not keep:
                self._drop_import(sequence)
                return True
        return False

    def _drop_import(self, sequence: Sequence) -> None:
        if sequence.import_id:
            self._blocks.release(sequence.import_id)
            sequence.import_id = ""

    # ------------------------------------------------------------ commit

    def commit(self, sequence: Sequence, item: PlanItem, elapsed_ns: int) -> list[FilledBlock]:
        """`item` was computed for `sequence`. Returns the blocks whose content is new here."""
        hashes = sequence.full_block_hashes()
        filled = []
        for index in sequence.advance(len(item.token_ids), elapsed_ns):
            block = FilledBlock(hashes[index], sequence.block_table[index])
            if self._blocks.fill(block.block_id, block.block_hash):
                filled.append(block)
        return filled


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


def _item(sequence: Sequence, budget: int) -> PlanItem:
    start = sequence.num_computed
    end = min(len(sequence.tokens), start + budget)
    return PlanItem(
        sequence_id=sequence.sequence_id,
        token_ids=tuple(sequence.tokens[start:end]),
        start=start,
        block_table=tuple(sequence.block_table),
        sample=end == len(sequence.tokens),
        sampling=sequence.spec.sampling,
        num_prompt_tokens=sequence.num_prompt_tokens,
        prompt_token_ids=sequence.spec.prompt_token_ids,
        output_token_ids=tuple(sequence.output),
    )
