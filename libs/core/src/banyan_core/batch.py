"""A plan in the making: what each sequence's share is, and what the runner must be told with it."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.sequence import Sequence

MAX_LOGIT_TOKENS = 64
"""Of one sequence in one step when every token's logits are wanted: they are large."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch, or None when nothing can run; and sequences that can never run here."""

    plan: StepPlan | None
    too_long: tuple[Sequence, ...]


class Batch:
    """Items within a budget of tokens, and the block copies that come before them."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.items: list[PlanItem] = []
        self.copies: list[tuple[int, int]] = []

    def add(self, sequence: Sequence, drafts: tuple[int, ...] = ()) -> None:
        """As many of its tokens as the budget has room for."""
        if self.budget:
            item = _item(sequence, self.budget, drafts)
            self.items.append(item)
            self.budget -= len(item.token_ids)


def _item(sequence: Sequence, budget: int, drafts: tuple[int, ...]) -> PlanItem:
    """The next tokens of a sequence that has blocks for them, and what the runner must learn."""
    tokens, start = sequence.tokens, sequence.num_computed
    if sequence.wants_prompt_logprobs:
        budget = min(budget, MAX_LOGIT_TOKENS)
    end = min(len(tokens), start + budget)
    num_told, sequence.num_told_blocks = sequence.num_told_blocks, len(sequence.block_table)
    return PlanItem(
        sequence.sequence_id,
        (*tokens[start:end], *drafts),
        start,
        end == len(tokens),
        () if num_told is None else tuple(sequence.block_table[num_told:]),
        len(drafts),
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
