"""What the runner keeps of one sequence between steps, so that a plan only says what is new."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from banyan_core.masks import MaskState
from banyan_core.runner import Opening
from banyan_core.types import OutputToken
from banyan_engine.history import History
from banyan_engine.lora import LoraWeights

_ROOM_BLOCKS = 16


class SequenceState:
    """Made from an `Opening`; grows by what plans tell and by what is sampled.

    `prompt_logprobs` is None unless they are asked for and not out yet. `masks` is the
    mask filler's. `failure` is why no token can be had, once that is known. Raises ValueError for
    a block that is not in the pool.
    """

    def __init__(
        self, opening: Opening, num_blocks: int, adapter: LoraWeights | None = None
    ) -> None:
        self.sampling = opening.sampling
        self.adapter = adapter
        self.prompt_token_ids = opening.prompt_token_ids
        self.output_token_ids = opening.output_token_ids
        self.history = History(self.sampling, self.prompt_token_ids, self.output_token_ids)
        wanted = self.sampling.num_prompt_logprobs is not None and not self.output_token_ids
        self.prompt_logprobs: list[OutputToken] | None = [] if wanted else None
        self.masks: MaskState | None = None
        self.failure = ""
        self._num_pool_blocks = num_blocks
        self._num_blocks = 0
        self._buffer = torch.zeros(len(opening.block_table) + _ROOM_BLOCKS, dtype=torch.int64)
        self.block_table = self._buffer[:0]  # int64, a view of a buffer that stays
        self.extend(opening.block_table)

    def extend(self, block_ids: Sequence[int]) -> None:
        """More blocks for what comes."""
        if not block_ids:
            return
        if min(block_ids) < 0 or max(block_ids) >= self._num_pool_blocks:
            raise ValueError(
                f"block_table: expected 0 to {self._num_pool_blocks - 1}, got {list(block_ids)}"
            )
        end = self._num_blocks + len(block_ids)
        if end > len(self._buffer):
            self._buffer = torch.cat([self._buffer, self._buffer.new_zeros(end)])
        self._buffer[self._num_blocks : end] = torch.tensor(block_ids)
        self._num_blocks = end
        self.block_table = self._buffer[:end]
