"""What a runner asks of a grammar: which tokens may follow, as bits.

A state opens from the grammar and the output so far and from nothing else, so a sequence that is
resumed, or goes on in another worker, continues where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from banyan_core.types import Grammar


class MaskState(Protocol):
    """Where one output stands in its grammar."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow any more."""
        ...

    def fill(self, row: memoryview) -> None:
        """Set bit `t % 32` of word `t // 32` for each token that may come next.

        `row` has a uint32 word for each 32 tokens of the vocabulary, all of them 0.
        """
        ...

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Take these tokens in, or none of them: False when the grammar does not allow them."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens."""
        ...


class MaskSource(Protocol):
    """Grammars over one tokenizer's vocabulary. May be called from any one thread at a time."""

    def open(self, grammar: Grammar, output_token_ids: Sequence[int]) -> MaskState:
        """Raises ValueError, with what is wrong, when the grammar or the output is bad."""
        ...
