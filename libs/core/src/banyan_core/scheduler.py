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
from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.sequence import Sequence

MAX_LOGIT_TOKENS = 64
"""Of one sequence in one step when every token's logits are wanted: they are large."""


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
        self.running: list[Sequence] = []  # in order, as `waiting` is
        self._closed: list[str] = []
        self.totals = SchedulerTotals()

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> list[int]:
        """Take a sequence out. The references of the blocks returned pass to the caller."""
        (self.running if sequence.is_running else self.waiting).remove(sequence)
        sequence.is_running = False
        self._drop_import(sequence)
        self._close(sequence)
        table, sequence.block_table = sequence.block_table, []
        return table

    def take_back(self, plan: StepPlan) -> None:
        """A step failed, perhaps before the runner read whom to forget: it is told again."""
        self._closed += plan.closed

    def _close(self, sequence: Sequence) -> None:
        if sequence.num_told_blocks is not None:
            self._closed.append(sequence.sequence_id)
            sequence.num_told_blocks = None

    # ------------------------------------------------------------ plan

    def plan(self, number: int) -> Planned:
        """The next step. Takes blocks, admits and preempts; computes nothing."""
        self._grow_all()
        budget = self._limits.max_step_tokens
        items: list[PlanItem] = []
        for sequence in sorted(self.running, key=_decodes_first):
            if budget == 0:
                break
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
        if not items:
            return Planned(None, tuple(too_long))
        closed, self._closed = tuple(self._closed), []
        return Planned(StepPlan(number, tuple(items), closed=closed), tuple(too_long))

    def _grow_all(self) -> None:
        """Blocks for all known tokens of all that run; the last in order pays if it must."""
        size = self._blocks.block_size
        for sequence in list(self.running):
            while sequence.is_running and len(sequence.block_table) * size < len(sequence.tokens):
                block_ids = self._blocks.allocate(1)
                if block_ids is not None:
                    sequence.block_table += block_ids
                elif not self._drop_last_import():
                    self._preempt(self.running[-1])

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        victim.is_running = False
        self._close(victim)
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
        sequence.is_running = True
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

    def commit(self, sequence: Sequence, num_tokens: int, elapsed_ns: int) -> list[FilledBlock]:
        """`num_tokens` more of its tokens were computed, rejected drafts not counted.

        Returns the blocks whose content is new here.
        """
        filled = []
        for index in sequence.advance(num_tokens, elapsed_ns):
            block = FilledBlock(sequence.full_block_hashes()[index], sequence.block_table[index])
            if self._blocks.fill(block.block_id, block.block_hash):
                filled.append(block)
        return filled


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


def _decodes_first(sequence: Sequence) -> bool:
    return sequence.num_uncomputed > 1


def _item(sequence: Sequence, budget: int) -> PlanItem:
    """The next tokens of a sequence that has blocks for them, and what the runner must learn."""
    tokens, start = sequence.tokens, sequence.num_computed
    if sequence.wants_prompt_logprobs:
        budget = min(budget, MAX_LOGIT_TOKENS)
    end = min(len(tokens), start + budget)
    num_told, sequence.num_told_blocks = sequence.num_told_blocks, len(sequence.block_table)
    return PlanItem(
        sequence.sequence_id,
        tuple(tokens[start:end]),
        start,
        end == len(tokens),
        () if num_told is None else tuple(sequence.block_table[num_told:]),
        opening=_opening(sequence) if num_told is None else None,
    )


def _opening(sequence: Sequence) -> Opening:
    spec = sequence.spec
    return Opening(
        spec.prompt_token_ids,
        sequence.output_token_ids,
        tuple(sequence.block_table),
        spec.sampling,
        spec.adapter,
    )
