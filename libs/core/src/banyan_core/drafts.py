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

    def followed(self, sequence: Sequence) -> tuple[int, ...]:
        """With one of these as its next token `propose` would find something."""
        ...

    def forget(self, sequence_id: str) -> None:
        """The sequence is gone, or its tokens start anew."""
        ...


@dataclass(slots=True)
class _Grams:
    """Where each run of NUM_GRAM_TOKENS was last followed by something; grows with the tokens.

    By the run without its last token, then by that.
    """

    followers: dict[tuple[int, ...], dict[int, int]] = field(default_factory=dict)
    num_indexed: int = NUM_GRAM_TOKENS


class PromptLookup:
    """What followed the last tokens when they were there before, in prompt or output."""

    def __init__(self) -> None:
        self._grams: dict[str, _Grams] = {}

    def propose(self, sequence: Sequence, num_max: int) -> tuple[int, ...]:
        tokens = sequence.tokens
        known = self._indexed(sequence).followers.get(_gram(tokens, len(tokens) - 1))
        start = None if known is None else known.get(tokens[-1])
        if start is None:
            return ()
        period = len(tokens) - start  # past the last token it goes on as if in a loop
        return tuple(tokens[start + place % period] for place in range(num_max))

    def followed(self, sequence: Sequence) -> tuple[int, ...]:
        tokens = sequence.tokens
        gram = _gram(tokens, len(tokens))
        known = tuple(self._indexed(sequence).followers.get(gram, ()))
        # The last run is followed by the token to come, which may make it that run again.
        return (*known, tokens[-1]) if gram == _gram(tokens, len(tokens) - 1) else known

    def _indexed(self, sequence: Sequence) -> _Grams:
        tokens = sequence.tokens
        grams = self._grams.setdefault(sequence.sequence_id, _Grams())
        for end in range(grams.num_indexed, len(tokens)):
            grams.followers.setdefault(_gram(tokens, end - 1), {})[tokens[end - 1]] = end
        grams.num_indexed = max(grams.num_indexed, len(tokens))
        return grams

    def forget(self, sequence_id: str) -> None:
        self._grams.pop(sequence_id, None)


def _gram(tokens: list[int], end: int) -> tuple[int, ...]:
    """A run without its last token, which is at `end`."""
    return tuple(tokens[max(0, end + 1 - NUM_GRAM_TOKENS) : end])


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
        num = self._num_wanted(sequence, len(sequence.tokens), num_max)
        if num == 0:
            return ()
        self._tried(sequence)
        return self._drafter.propose(sequence, num)

    def drafted_ids(self, sequence: Sequence, num_max: int) -> tuple[int, ...]:
        """With one of these as its next token `propose` would find something."""
        num = self._num_wanted(sequence, len(sequence.tokens) + 1, num_max)
        return self._drafter.followed(sequence) if num else ()

    def passed(self, sequence: Sequence) -> None:
        """Its next token came and was none of `drafted_ids`: as if `propose` had found nothing."""
        if self._num_wanted(sequence, len(sequence.tokens), 1):
            self._tried(sequence)

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

    def _num_wanted(self, sequence: Sequence, num_tokens: int, num_max: int) -> int:
        """How many to look for when it has `num_tokens`."""
        num_max = min(num_max, self._max_tokens, sequence.num_max_tokens - num_tokens - 1)
        if num_max < 1 or sequence.hold or sequence.spec.sampling.grammar is not None:
            return 0
        record = self._records.setdefault(sequence.sequence_id, _Record())
        num_paying = self._num_paying(record)
        return min(num_max, num_paying or int(num_tokens >= record.retry_at))

    def _tried(self, sequence: Sequence) -> None:
        record = self._records[sequence.sequence_id]
        if self._num_paying(record) == 0:
            record.retry_at = len(sequence.tokens) + _RETRY_TOKENS

    def _num_paying(self, record: _Record) -> int:
        share, num, gain = self.cost.token_share, 0, record.rate
        while num < self._max_tokens and gain > share:
            num += 1
            gain *= record.rate
        return num
