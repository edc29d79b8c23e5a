"""Prepares the step that may follow the one that runs, and takes it back when something comes up.

Preparing takes blocks and tells nobody: they are their sequences' own, and the next plan that is
made tells the runner of them if the prepared one does not. So nothing has to be undone.
"""

from __future__ import annotations

from banyan_core.block_manager import BlockManager
from banyan_core.drafts import Drafts
from banyan_core.engine_messages import Prepare, Revoke
from banyan_core.engine_queues import EngineQueues
from banyan_core.next_step import NextItem, NextStep
from banyan_core.runner import StepPlan, StepResult
from banyan_core.sequence import Sequence
from banyan_core.types import ModelCard


class StepAhead:
    """At most one next step is out, for the step that is outstanding."""

    def __init__(
        self,
        queues: EngineQueues,
        blocks: BlockManager,
        drafts: Drafts,
        max_running: int,
        max_step_tokens: int,
    ) -> None:
        self._queues = queues
        self._blocks = blocks
        self._drafts = drafts
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._next: NextStep | None = None
        self._is_revoked = False

    def prepare(self, plan: StepPlan, card: ModelCard) -> list[Prepare]:
        """For the outstanding step, once. Nothing where it is not sure what comes next."""
        self._next = self._next_step(plan, card)
        self._is_revoked = False
        return [] if self._next is None else [Prepare(self._next)]

    def revoke(self) -> list[Revoke]:
        """What was assumed no longer holds. It may have begun: then `begun` is told of it."""
        if self._next is None or self._is_revoked:
            return []
        self._is_revoked = True
        return [Revoke(self._next.number)]

    def begun(self, result: StepResult) -> StepPlan:
        """What was prepared for after `result` runs; the runner knows all that its plan says."""
        plan = self._next.plan(result) if self._next is not None else None
        assert plan is not None, f"nothing could follow step {result.number}"
        self._next = None
        del self._queues.closed[: len(plan.closed)]
        return plan

    def told(self, sequence: Sequence) -> None:
        """A sequence of the plan that has begun, with the token that it begins with."""
        sequence.num_told_blocks = len(sequence.block_table)
        self._drafts.passed(sequence)

    def drop(self) -> None:
        """The step is over and a plan is made: nothing follows by itself."""
        self._next = None

    def _next_step(self, plan: StepPlan, card: ModelCard) -> NextStep | None:
        """None where there may be drafts, chunks or an admission, or no block for a token."""
        running, someone_waits = self._queues.running, bool(self._queues.waiting)
        if someone_waits and len(running) < self._max_running:
            return None
        if not _is_even(plan, running):
            return None
        # Who has all its tokens with the one that is computed now has no part in the next step.
        staying = [one for one in running if len(one.tokens) + 1 < one.num_max_tokens]
        if not staying or (someone_waits and len(staying) < len(running)):
            return None
        if not all(self._blocks.extend(one.block_table, len(one.tokens) + 1) for one in staying):
            return None
        num_spare = 0 if someone_waits else self._max_step_tokens - len(staying)
        items = tuple(self._item(one, card, num_spare) for one in staying)
        return NextStep(plan.number + 1, items, tuple(self._queues.closed), someone_waits)

    def _item(self, sequence: Sequence, card: ModelCard, num_spare: int) -> NextItem:
        return NextItem(
            sequence.sequence_id,
            len(sequence.tokens),
            tuple(sequence.block_table[sequence.num_told_blocks :]),
            sequence.ending_ids(card, sequence.num_output_tokens + 1),
            self._drafts.drafted_ids(sequence, num_spare),
        )


def _is_even(plan: StepPlan, running: list[Sequence]) -> bool:
    """Whether the step brings each that runs one token, and none has to end with it."""
    return (
        len(plan.items) == len(running)
        and all(item.sample and not item.num_draft_tokens for item in plan.items)
        and all(one.ending is None and not one.hold for one in running)
    )
