"""Which of the scored workers it is. Candidates come in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from banyan_core.policies.draw import Draws

Picker = Callable[[Sequence[float], Draws, str], int]
"""(totals, draws, purpose) to the index of the one picked."""


def best(totals: Sequence[float], _: Draws, __: str) -> int:
    """The highest total; of equal ones the first, which has the smallest worker id."""
    return max(range(len(totals)), key=lambda index: (totals[index], -index))


def any_one(totals: Sequence[float], draws: Draws, purpose: str) -> int:
    """Each with equal chance, whatever its score."""
    return draws.below(len(totals), purpose)
