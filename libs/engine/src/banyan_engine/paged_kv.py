"""The K and V tensors behind block ids: write slots, gather contexts, move pages.

One invariant makes padding and masking safe: slots of a block after the last one written hold
zeros, because a write to a block's first slot clears the block. What an earlier tenant left (a
NaN, say) is therefore never multiplied with anything. One more block than the pool has, always
zero, pads block tables of unequal length.

int8 pools keep a row as its bytes and, behind them, the row's float32 scale: a page is whole by
itself, wherever it is copied to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from banyan_core.types import KvLayout
from banyan_engine.device import CPU
from banyan_engine.kernels.native import Pools
from banyan_engine.page_bytes import pages_of
from banyan_engine.rowwise import keep
from banyan_engine.step_inputs import StepInputs

SCALE_BYTES = 4
"""Behind each int8 row."""


class Slots(NamedTuple):
    """Where a step's tokens go: a slot per token, and the blocks that it begins."""

    slot_ids: Tensor
    fresh_block_ids: Tensor


def _width(num_dims: int, dtype: torch.dtype) -> int:
    """Elements of a row, with its scale if it has one."""
    return num_dims + SCALE_BYTES if num_dims and dtype == torch.int8 else num_dims


def _quantized(rows: Tensor) -> Tensor:
    """[..., dims] to int8 [..., dims + SCALE_BYTES]. A row that is not finite gets a NaN scale."""
    rows = rows.to(torch.float32)
    scales = (rows.abs().amax(dim=-1, keepdim=True) / 127).clamp_min(torch.finfo().tiny)
    scales = torch.where(scales.isfinite(), scales, torch.nan)
    values = (rows / scales).round_().nan_to_num_(0.0).to(torch.int8)
    return torch.cat((values, scales.view(torch.int8)), dim=-1)


def _numbers(stored: Tensor) -> Tensor:
    """The reverse of `_quantized`, in float32."""
    scales = stored[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return stored[..., :-SCALE_BYTES] * scales


class PagedKv:
    """K and V per layer, each [num_blocks + 1, block_size, kv_heads, channels]."""

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        block_size: int,
        device: torch.device = CPU,
    ) -> None:
        self.layout = layout
        self.device = device
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.zero_block_id = num_blocks
        dtype = KV_DTYPES[layout.dtype]
        self._pools = [
            tuple(
                torch.zeros(
                    num_blocks + 1,
                    block_size,
                    layer.num_kv_heads,
                    width,
                    dtype=dtype,
                    device=device,
                )
                for width in (_width(layer.key_dim, dtype), _width(layer.value_dim, dtype))
            )
            for layer in layout.layers
        ]  # by layer, K and V
        self.inputs = StepInputs(num_blocks, block_size)
        self._gathered = [torch.empty(0, dtype=dtype) for _ in ("keys", "values")]
        self._pages = [pages_of(pools) for pools in self._pools]

    def slots(self, start: int, num_tokens: int, block_table: Tensor) -> Slots:
        """Slots of positions `start` to `start + num_tokens` of one sequence, on the host."""
        size, end = self.block_size, start + num_tokens
        first, past = start // size, -(-end // size)
        table = block_table[first:past]
        if len(table) < past - first or int(table.min()) < 0 or int(table.max()) >= self.num_blocks:
            raise ValueError(f"block_table: no block of this pool for positions {start} to {end}")
        positions = torch.arange(start, end)
        slot_ids = table[positions // size - first] * size + positions % size
        return Slots(slot_ids, table if start % size == 0 else table[1:])

    def write(self, layer: int, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Put k and v [tokens, kv_heads, channels] into their slots."""
        for pool, rows in zip(self._pools[layer], (keys, values), strict=True):
            if len(slots.fresh_block_ids):
                pool.index_fill_(0, slots.fresh_block_ids, 0)
            if keep(rows, pool, slots.slot_ids):
                continue
            stored = _quantized(rows) if pool.dtype == torch.int8 else rows.to(pool.dtype)
            pool.flatten(0, 1).index_copy_(0, slots.slot_ids, stored)

    def pools(self, layer: int) -> Pools:
        """The K and V of one layer, as they lie in memory."""
        return Pools(*self._pools[layer])

    def copy_block(self, source: int, target: int) -> None:
        """All layers of one block into another, for a sequence that goes on from there alone."""
        for pools in self._pools:
            for pool in pools:
                pool[target] = pool[source]

    def gather(self, layer: int, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of these blocks, each [blocks * block_size, kv_heads, channels].

        They are views of a buffer and stand until the next gather: memory that is new each time
        costs several times the copy, in page faults.
        """
        keys, values = (
            self._gather(index, pool, block_ids) for index, pool in enumerate(self._pools[layer])
        )
        return keys, values

    def _gather(self, index: int, pool: Tensor, block_ids: Tensor) -> Tensor:
        shape = (len(block_ids), *pool.shape[1:])
        if self._gathered[index].numel() < math.prod(shape):
            self._gathered[index] = torch.empty(math.prod(shape), dtype=pool.dtype)
        found = self._gathered[index][: math.prod(shape)].view(shape)
        torch.index_select(pool, 0, block_ids, out=found)
        return _numbers(found.flatten(0, 1)) if pool.dtype == torch.int8 else found.flatten(0, 1)

    def export_page(self, block_id: int, layer: int) -> bytes:
        """K then V of one block in one layer."""
        self._check_place(block_id, layer)
        return self._pages[layer].read(block_id)

    def import_page(self, block_id: int, layer: int, data: bytes) -> None:
        """The reverse of `export_page`. Raises ValueError when the length is not the layout's."""
        self._check_place(block_id, layer)
        if len(data) != (num_bytes := self.layout.page_bytes(layer, self.block_size)):
            raise ValueError(f"page: {len(data)} bytes, expected {num_bytes}")
        self._pages[layer].write(block_id, data)

    def _check_place(self, block_id: int, layer: int) -> None:
        if not 0 <= block_id < self.num_blocks:
            raise ValueError(f"block_id: {block_id}, expected 0 to {self.num_blocks - 1}")
        if not 0 <= layer < self.layout.num_layers:
            raise ValueError(f"layer: {layer}, expected 0 to {self.layout.num_layers - 1}")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names that the type of weights may have."""
KV_DTYPES = {**DTYPES, "int8": torch.int8}
"""Names that `KvLayout.dtype` may have here."""
