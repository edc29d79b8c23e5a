"""The integers of a step: which tokens, at which positions, into which slots, which rows sample.

A step of decodes has a few of each per sequence, and making tensors of them anew costs more than
small layers do. So they lie in buffers that stay, on the host, and are filled in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from banyan_engine.spans import Span

_FIRST_TOKENS = 512


class FilledInputs(NamedTuple):
    """int64, views of buffers that stand until the next step.

    Per token its id, position and slot; the blocks that they begin; which of them sample.
    """

    token_ids: Tensor
    positions: Tensor
    slot_ids: Tensor
    fresh_block_ids: Tensor
    sampled_rows: Tensor


class StepInputs:
    """Of steps over one pool of blocks, one at a time."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._reserve(_FIRST_TOKENS)

    def fill(self, spans: Sequence[Span]) -> FilledInputs:
        """Raises ValueError when a block table does not reach or is not of this pool."""
        num_tokens = sum(span.num_tokens for span in spans)
        if num_tokens > self._buffers.shape[1]:
            self._reserve(2 * num_tokens)
        row = num_fresh = num_sampled = 0
        for span in spans:
            place = self._place_one if span.num_tokens == 1 else self._place_many
            num_fresh += place(span, row, num_fresh)
            row += span.num_tokens
            for sampled in range(row - span.num_sampled, row):
                self._rows[num_sampled] = sampled
                num_sampled += 1
        token_ids, positions, slot_ids, fresh_block_ids, rows = self._buffers
        if spans:
            torch.cat([span.token_ids for span in spans], out=token_ids[:num_tokens])
        return FilledInputs(
            token_ids[:num_tokens],
            positions[:num_tokens],
            slot_ids[:num_tokens],
            fresh_block_ids[:num_fresh],
            rows[:num_sampled],
        )

    def _reserve(self, num_tokens: int) -> None:
        self._buffers = torch.zeros(5, num_tokens, dtype=torch.int64)
        # The same memory: to set a number in a tensor costs a hundred times as much.
        _, self._positions, self._slot_ids, self._fresh, self._rows = self._buffers.numpy()

    def _place_one(self, span: Span, row: int, num_fresh: int) -> int:
        """One token at `row`. Returns how many blocks it begins."""
        index, slot = divmod(span.start, self._block_size)
        block_id = span.block_table.numpy()[index] if index < len(span.block_table) else -1
        if not 0 <= block_id < self._num_blocks:
            raise _no_block(span)
        self._positions[row] = span.start
        self._slot_ids[row] = block_id * self._block_size + slot
        if slot == 0:
            self._fresh[num_fresh] = block_id
        return int(slot == 0)

    def _place_many(self, span: Span, row: int, num_fresh: int) -> int:
        """The tokens of a chunk, from `row` on. Returns how many blocks they begin."""
        size, end = self._block_size, row + span.num_tokens
        first, past = span.start // size, -(-span.end // size)
        table = span.block_table.numpy()[first:past]
        if len(table) < past - first or table.min() < 0 or table.max() >= self._num_blocks:
            raise _no_block(span)
        positions = self._positions[row:end]
        positions[:] = np.arange(span.start, span.end)
        self._slot_ids[row:end] = table[positions // size - first] * size + positions % size
        fresh = table if span.start % size == 0 else table[1:]
        self._fresh[num_fresh : num_fresh + len(fresh)] = fresh
        return len(fresh)


def _no_block(span: Span) -> ValueError:
    return ValueError(
        f"block_table: no block of this pool for positions {span.start} to {span.end}"
    )
