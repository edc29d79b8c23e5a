"""Randomness that replays: each draw is a hash of who decides, which decision, and what for."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.hashing import derive


@dataclass(frozen=True, slots=True)
class Draws:
    """The random source of one decision. Equal purpose, equal number."""

    seed: int
    decider: str
    number: int

    def below(self, limit: int, purpose: str) -> int:
        """A number in [0, limit)."""
        return derive(self.seed, self.decider, self.number, purpose) % limit
