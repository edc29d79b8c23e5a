"""What a forward pass is told of one sequence: tensors and positions, nothing of requests.

A plan speaks of sequences, sampling and tuples of integers; a forward pass wants tensors that are
made once and stay. The runner stands between the two and turns plan items into spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from banyan_engine.lora import LoraWeights


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Consecutive tokens of one sequence, to compute at positions `start`, `start` + 1, ...

    `token_ids` is int64 [tokens]. `block_table`, int64, covers at least positions 0 to `end`; it
    may be a view of a buffer that stays. Logits are wanted for the last `num_sampled` tokens.
    """

    token_ids: Tensor
    start: int
    block_table: Tensor
    num_sampled: int
    adapter: LoraWeights | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return self.token_ids.shape[0]

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.num_tokens


def sampled_parts(spans: Sequence[Span]) -> list[Span]:
    """The spans that sample, each cut down to the tokens whose logits are wanted."""
    return [_sampled_part(span) for span in spans if span.num_sampled]


def _sampled_part(span: Span) -> Span:
    if span.num_sampled == span.num_tokens:
        return span
    token_ids = span.token_ids[span.num_tokens - span.num_sampled :]
    return replace(span, token_ids=token_ids, start=span.end - span.num_sampled)
