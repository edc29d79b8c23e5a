"""Which sequences run in the next step, and how many of their tokens.

`plan` decides and takes the blocks it needs; `commit` applies what the step computed. The batching
policy says whether decodes or prompts have the token budget first, the admission policy whether
the next waiting sequence gets its blocks. Order is by due time everywhere (see
`policies/batching.py`). When blocks run out the last in that order gives its blocks up and
computes them again later (most of it is usually still cached).

Choices of one request have one prompt: one computes it, the others wait for that, share its full
blocks and take a copy of the block in which the prompt ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.batch import Batch, Planned
from banyan_core.block_manager import BlockManager, FilledBlock
from banyan_core.drafts import Drafts, PromptLookup
from banyan_core.engine_queues import EngineQueues
from banyan_core.policies.batching import BatchingPolicy, Chunked, Phase
from banyan_core.policies.engine_admission import (
    AdmissionView,
    EngineAdmissionPolicy,
    Growing,
    OutputLengths,
    Watermark,
)
from banyan_core.runner import StepPlan
from banyan_core.sequence import Sequence
from banyan_core.step_ahead import StepAhead


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds and policies of one engine.

    `max_step_tokens` is the budget of a step; each running sequence needs one of it.
    `max_draft_tokens` are guessed at for one sequence in a step, where that pays; 0 is never.
    What is admitted but not yet computed is bounded: `max_waiting` sequences beyond those that
    can run at once, and prompt tokens, in number and by the time that they take at the measured
    rate: a quarter of the usual target for the first token.
    """

    max_step_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 8
    max_waiting_tokens: int = 262_144
    max_waiting_s: float = 0.5
    max_draft_tokens: int = 0
    batching: BatchingPolicy = field(default_factory=Chunked)
    admission: EngineAdmissionPolicy = field(default_factory=Watermark)

    def __post_init__(self) -> None:
        if not 1 <= self.max_running <= self.max_step_tokens:
            raise ValueError(
                f"max_running: expected 1 to max_step_tokens ({self.max_step_tokens}), "
                f"got {self.max_running}"
            )


@dataclass(slots=True)
class SchedulerTotals:
    """Counters since the start. Queried and hit tokens are counted at each admission."""

    num_preemptions: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0


class Scheduler:
    """Plans over queues that are its own. Sequences leave by `remove` only."""

    def __init__(self, blocks: BlockManager, limits: EngineLimits) -> None:
        self._blocks = blocks
        self._limits = limits
        self._queues = EngineQueues(blocks, limits.batching.aging_ns)
        self._lengths = OutputLengths()
        self.drafts = Drafts(PromptLookup(), limits.max_draft_tokens)
        self.ahead = StepAhead(
            self._queues, blocks, self.drafts, limits.max_running, limits.max_step_tokens
        )
        self.totals = SchedulerTotals()

    @property
    def waiting(self) -> list[Sequence]:
        return self._queues.waiting

    @property
    def running(self) -> list[Sequence]:
        """In order, as `waiting` is."""
        return self._queues.running

    def add(self, sequence: Sequence) -> None:
        self._queues.add(sequence)

    def remove(self, sequence: Sequence, *, is_whole: bool = False) -> list[int]:
        """Take a sequence out. The references of the blocks returned pass to the caller.

        The length of one that `is_whole` is remembered for the admission of others.
        """
        self.drafts.forget(sequence.sequence_id)
        if is_whole:
            self._lengths.add(sequence.num_output_tokens)
        return self._queues.remove(sequence)

    def take_back(self, plan: StepPlan) -> None:
        """A step failed, perhaps before the runner read whom to forget: it is told again."""
        self._queues.closed += plan.closed

    # ------------------------------------------------------------ plan

    def plan(self, number: int) -> Planned:
        """The next step. Takes blocks, admits and preempts; computes nothing."""
        self.ahead.drop()
        self._grow_all()
        batch = Batch(self._limits.max_step_tokens)
        decoding = [one for one in self.running if one.num_uncomputed == 1]
        prompting = [one for one in self.running if one.num_uncomputed > 1]
        num_spare = 0 if prompting or self.waiting else batch.budget - len(decoding)
        too_long: list[Sequence] = []
        for phase in self._limits.batching.phases(len(decoding)):
            if phase is Phase.DECODE:
                for sequence in decoding:
                    drafts = self._drafts_for(sequence, num_spare)
                    num_spare -= len(drafts)
                    batch.add(sequence, drafts)
            else:
                for sequence in prompting:
                    batch.add(sequence)
                self._admit_into(batch, too_long)
        if not batch.items:
            return Planned(None, tuple(too_long))
        closed = self._queues.take_closed()
        plan = StepPlan(number, tuple(batch.items), tuple(batch.copies), closed)
        return Planned(plan, tuple(too_long))

    def _drafts_for(self, sequence: Sequence, num_spare: int) -> tuple[int, ...]:
        """Guesses that fit into the step, and into blocks that nobody else needs."""
        if num_spare <= 0 or self._limits.max_draft_tokens == 0:
            return ()
        drafts = self.drafts.propose(sequence, num_spare)
        size, num_tokens = self._blocks.block_size, len(sequence.tokens)
        while len(sequence.block_table) * size < num_tokens + len(drafts):
            has_room = self._blocks.num_available > len(self.running)
            block_ids = self._blocks.allocate(1) if has_room else None
            if block_ids is None:
                return drafts[: len(sequence.block_table) * size - num_tokens]
            sequence.block_table += block_ids
        return drafts

    def _admit_into(self, batch: Batch, too_long: list[Sequence]) -> None:
        place = 0
        while batch.budget and place < len(self.waiting):
            if len(self.running) >= self._limits.max_running:
                return
            sequence = self.waiting[place]
            sibling = self._queues.sibling(sequence)
            if sequence.num_blocks_needed > self._blocks.num_blocks:
                too_long.append(self.waiting.pop(place))
                self._queues.drop_import(sequence)
            elif sibling is not None and sibling.num_computed < len(sequence.tokens) - 1:
                place += 1  # its prompt is being computed
            elif self._admit(sequence, sibling, batch):
                batch.add(sequence)
            else:
                return

    def _grow_all(self) -> None:
        """Blocks for all known tokens of all that run; the last in order pays if it must."""
        for sequence in list(self.running):
            while sequence.is_running and not self._blocks.extend(
                sequence.block_table, len(sequence.tokens)
            ):
                if not self._queues.drop_last_import():
                    self._preempt(self.running[-1])

    def _preempt(self, victim: Sequence) -> None:
        self._queues.stop(victim)
        self._blocks.give_back(victim.block_table)
        victim.block_table = []
        victim.num_computed = 0
        victim.num_preemptions += 1
        self.totals.num_preemptions += 1
        self.add(victim)

    def _admit(self, sequence: Sequence, sibling: Sequence | None, batch: Batch) -> bool:
        """Move a waiting sequence into the batch, if its blocks can be had."""
        table = self._table_for(sequence)
        if table is None and not self.running:
            # Blocks imported for others that wait must not keep the engine idle.
            while table is None and self._queues.drop_last_import(keep=sequence):
                table = self._table_for(sequence)
        if table is None:
            return False
        num_cached = sequence.num_computed // self._blocks.block_size
        num_before_last = len(sequence.tokens) - 1
        if sibling is not None and num_before_last - sequence.num_computed in range(
            1, self._blocks.block_size
        ):
            batch.copies.append((sibling.block_table[num_cached], table[num_cached]))
            sequence.num_computed = num_before_last
        self._queues.run(sequence, table)
        self.totals.num_queried_tokens += len(sequence.tokens)
        self.totals.num_hit_tokens += sequence.num_computed
        return True

    def _table_for(self, sequence: Sequence) -> list[int] | None:
        """Cached and fresh blocks for all its known tokens; None when it must wait."""
        cached = self._blocks.match(sequence.reusable_hashes())
        self._blocks.take(cached)
        num_new = sequence.num_blocks_needed - len(cached)
        fits = self._limits.admission.admits(self._view(sequence, num_new))
        fresh = self._blocks.allocate(num_new) if fits else None
        if fresh is None:
            self._blocks.give_back(cached)
            return None
        sequence.num_computed = len(cached) * self._blocks.block_size
        return cached + fresh

    def _view(self, candidate: Sequence, num_new: int) -> AdmissionView:
        return AdmissionView(
            self._blocks.block_size,
            self._blocks.num_blocks,
            self._blocks.num_available,
            num_new,
            _growing(candidate),
            [_growing(one) for one in self.running],
            self._lengths.sorted,
        )

    # ------------------------------------------------------------ commit

    def observe(self, plan: StepPlan, elapsed_ns: int) -> None:
        """How long a step took; those of decodes alone tell what a draft costs."""
        if all(len(item.token_ids) == 1 + item.num_draft_tokens for item in plan.items):
            num_tokens = sum(len(item.token_ids) for item in plan.items)
            self.drafts.cost.observe(num_tokens, elapsed_ns)

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


def _growing(sequence: Sequence) -> Growing:
    num_tokens = len(sequence.tokens)
    return Growing(num_tokens, sequence.num_output_tokens, sequence.num_max_tokens - num_tokens)
