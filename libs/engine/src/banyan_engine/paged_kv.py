"""The K and V tensors behind block ids: write slots, gather contexts, move pages.

One invariant makes padding and masking safe: slots of a block after the last one written hold
zeros, because a write to a block's first slot clears the block. What an earlier tenant left (a
NaN, say) is therefore never multiplied with anything. One more block than the pool has, always
zero, pads block tables of unequal length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from banyan_core.types import KvLayout


class Slots(NamedTuple):
    """Where a step's tokens go: a slot per token, and the blocks that it begins."""

    slot_ids: Tensor
    fresh_block_ids: Tensor


class PagedKv:
    """K and V per layer, each [num_blocks + 1, block_size, kv_heads, head_dim]."""

    def __init__(self, layout: KvLayout, num_blocks: int, block_size: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.zero_block_id = num_blocks
        shape = (num_blocks + 1, block_size, layout.num_kv_heads, layout.head_dim)
        dtype = DTYPES[layout.dtype]
        self._keys = [torch.zeros(shape, dtype=dtype) for _ in range(layout.num_layers)]
        self._values = [torch.zeros(shape, dtype=dtype) for _ in range(layout.num_layers)]
        self._gathered = [torch.empty(0, *shape[1:], dtype=dtype) for _ in ("keys", "values")]
        self._pages = [
            tuple(pool.view(torch.uint8).flatten(1).numpy() for pool in layer)
            for layer in zip(self._keys, self._values, strict=True)
        ]  # the same memory as bytes: by layer, K and V, [num_blocks + 1, half a page]

    @property
    def page_bytes(self) -> int:
        """Bytes of one block in one layer, K and V."""
        return self.layout.token_bytes * self.block_size // self.layout.num_layers

    def slots(self, start: int, num_tokens: int, block_table: Tensor) -> Slots:
        """Slots of positions `start` to `start + num_tokens` of one sequence."""
        size, end = self.block_size, start + num_tokens
        first, past = start // size, -(-end // size)
        table = block_table[first:past]
        if len(table) < past - first or int(table.min()) < 0 or int(table.max()) >= self.num_blocks:
            raise ValueError(f"block_table: no block of this pool for positions {start} to {end}")
        positions = torch.arange(start, end)
        slot_ids = table[positions // size - first] * size + positions % size
        return Slots(slot_ids, table if start % size == 0 else table[1:])

    def write(self, layer: int, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Put k and v [tokens, kv_heads, head_dim] into their slots."""
        for pool, rows in ((self._keys[layer], keys), (self._values[layer], values)):
            pool.index_fill_(0, slots.fresh_block_ids, 0)
            pool.flatten(0, 1).index_copy_(0, slots.slot_ids, rows)

    def copy_block(self, source: int, target: int) -> None:
        """All layers of one block into another, for a sequence that goes on from there alone."""
        for pool in (*self._keys, *self._values):
            pool[target] = pool[source]

    def gather(self, layer: int, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of these blocks, each [blocks * block_size, kv_heads, head_dim].

        They are views of a buffer and stand until the next gather: memory that is new each time
        costs several times the copy, in page faults.
        """
        num_blocks = len(block_ids)
        if len(self._gathered[0]) < num_blocks:
            self._gathered = [
                buffer.new_empty(num_blocks, *buffer.shape[1:]) for buffer in self._gathered
            ]
        keys, values = (buffer[:num_blocks] for buffer in self._gathered)
        torch.index_select(self._keys[layer], 0, block_ids, out=keys)
        torch.index_select(self._values[layer], 0, block_ids, out=values)
        return keys.flatten(0, 1), values.flatten(0, 1)

    def export_page(self, block_id: int, layer: int) -> bytes:
        """K then V of one block in one layer, `page_bytes` long."""
        self._check_place(block_id, layer)
        return b"".join([half[block_id] for half in self._pages[layer]])

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        """The reverse of `export_page`. Raises ValueError when the length is not `page_bytes`."""
        self._check_place(block_id, layer)
        if len(data) != self.page_bytes:
            raise ValueError(f"page: {len(data)} bytes, expected {self.page_bytes}")
        halves = np.frombuffer(data, dtype=np.uint8).reshape(2, -1)
        for half, new in zip(self._pages[layer], halves, strict=True):
            half[block_id] = new

    def _check_place(self, block_id: int, layer: int) -> None:
        if not 0 <= block_id < self.num_blocks:
            raise ValueError(f"block_id: {block_id}, expected 0 to {self.num_blocks - 1}")
        if not 0 <= layer < self.layout.num_layers:
            raise ValueError(f"layer: {layer}, expected 0 to {self.layout.num_layers - 1}")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names that `KvLayout.dtype` may have here."""
