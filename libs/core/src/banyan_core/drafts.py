"""Guesses at the next tokens, which a step checks along with its own: speculative decoding.

Guesses never change what is said: a token counts only if it was sampled from the true logits, and
sampling is pure. They change how many tokens a step brings, and what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from banyan_core.runner import PlanItem
from banyan_core.sequence import Sequence
from banyan_core.step_cost import StepCost

NUM_GRAM_TOKENS = 3
"""Shorter ones are met too often by chance."""
_FIRST_RATE = 0.7
"""What is expected of a sequence's drafts before any was checked."""
_WEIGHT_OF_NEW = 0.2
_RETRY_TOKENS = 64
"""A sequence whose drafts did not pay tries one again after so many tokens."""


class Drafter(Protocol):
    """Where guesses come from: the sequence's own tokens here, a small model perhaps elsewhere."""

    def propose(self, sequence: Sequence, num_max: int) -> tuple[int, ...]:
        """At most `num_max` tokens that may follow `sequence.tokens`."""
        ...

    def forget(self, sequence_id: str) -> None:
        """The sequence is gone, or its tokens start anew."""
        ...


@dataclass(slots=True)
class _Grams:
    """Where each run of NUM_GRAM_TOKENS was last followed by something; grows with the tokens."""

    followers: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = NUM_GRAM_TOKENS


class PromptLookup:
    """What followed the last tokens when they were there before, in prompt or output."""

    def __init__(self) -> None:
        self._grams: dict[str, _Grams] = {}

    def propose(self, sequence: Sequence, num_max: int) -> tuple[int, ...]:
        tokens = sequence.tokens
        grams = self._grams.setdefault(sequence.sequence_id, _Grams())
        for end in range(grams.num_indexed, len(tokens)):
            grams.followers[tuple(tokens[end - NUM_GRAM_TOKENS : end])] = end
        grams.num_indexed = max(grams.num_indexed, len(tokens))
        start = grams.followers.get(tuple(tokens[-NUM_GRAM_TOKENS:]))
        if start is None:
            return ()
        period = len(tokens) - start  # past the last token it goes on as if in a loop
        return tuple(tokens[start + place % period] for place in range(num_max))

    def forget(self, sequence_id: str) -> None:
        self._grams.pop(sequence_id, None)


@dataclass(slots=True)
class _Record:
    """How one sequence's drafts did: `rate` is the share of checked ones that were right."""

    rate: float = _FIRST_RATE
    retry_at: int = 0

    def add(self, right: float) -> None:
        self.rate += _WEIGHT_OF_NEW * (right - self.rate)


class Drafts:
    """Decides how many tokens to draft, by sequence.

    With rate r the d-th draft brings r^d tokens and costs one token's share of a step's time. It
    pays while r^d is more than that share; where not even the first does, drafting stops, and
    one is tried again later.
    """

    def __init__(self, drafter: Drafter, max_tokens: int) -> None:
        self._drafter = drafter
        self._max_tokens = max_tokens
        self._records: dict[str, _Record] = {}
        self.cost = StepCost()

    def propose(self, sequence: Sequence, num_max: int) -> tuple[int, ...]:
        """Tokens to add to the sequence's next item."""
        sampling = sequence.spec.sampling
        num_max = min(num_max, sequence.num_max_tokens - len(sequence.tokens) - 1)
        if sequence.hold or sampling.grammar is not None or num_max < 1:
            return ()
        record = self._records.setdefault(sequence.sequence_id, _Record())
        num = min(num_max, self._num_paying(record))
        if num == 0:
            if len(sequence.tokens) < record.retry_at:
                return ()
            record.retry_at = len(sequence.tokens) + _RETRY_TOKENS
            num = 1
        return self._drafter.propose(sequence, num)

    def checked(self, item: PlanItem, num_right: int) -> None:
        """Of the item's drafts the first `num_right` were sampled just so."""
        record = self._records.get(item.sequence_id)
        if record is None or not item.num_draft_tokens:
            return
        for _ in range(num_right):
            record.add(1.0)
        if num_right < item.num_draft_tokens:
            record.add(0.0)

    def forget(self, sequence_id: str) -> None:
        self._records.pop(sequence_id, None)
        self._drafter.forget(sequence_id)

    def _num_paying(self, record: _Record) -> int:
        share, num, gain = self.cost.token_share, 0, record.rate
        while num < self._max_tokens and gain > share:
            num += 1
            gain *= record.rate
        return num
