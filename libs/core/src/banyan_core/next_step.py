"""The step that follows the one that runs, prepared while that computes: only the tokens are open.

As a rule every sequence that runs decodes one token and goes on. Then the next step is known but
for those tokens, and whoever ran the last one can begin it by itself, without the engine loop in
between. Where the rule does not hold there is no plan in here, and the engine loop makes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.runner import PlanItem, Sampled, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class NextItem:
    """One sequence's share: the token that the running step samples, at position `start`.

    One of `ending_ids` ends the sequence; after one of `drafted_ids` a draft may pay.
    """

    sequence_id: str
    start: int
    new_block_ids: tuple[int, ...]
    ending_ids: tuple[int, ...]
    drafted_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NextStep:
    """Frozen, so that another thread may ask it for its plan.

    With `someone_waits` the end of any sequence is room for another, and there is no plan.
    """

    number: int
    items: tuple[NextItem, ...]
    closed: tuple[str, ...]
    someone_waits: bool

    def plan(self, result: StepResult) -> StepPlan | None:
        """With the tokens of `result`, without those that end; None if it must be made anew."""
        if result.number + 1 != self.number:
            return None
        sampled = {one.sequence_id: one for one in result.sampled}
        items = []
        for item in self.items:
            one = sampled.get(item.sequence_id)
            if one is None or _ends(item, one):
                if self.someone_waits:
                    return None
                continue
            token_id = one.tokens[0].token_id
            if token_id in item.drafted_ids:
                return None
            items.append(
                PlanItem(item.sequence_id, (token_id,), item.start, True, item.new_block_ids)
            )
        return StepPlan(self.number, tuple(items), (), self.closed) if items else None


def _ends(item: NextItem, sampled: Sampled) -> bool:
    if sampled.finished or not sampled.tokens:
        return True
    return sampled.tokens[0].token_id in item.ending_ids
