"""Attention on a GPU: torch's flex_attention over the pool itself, nothing gathered.

The whole pool is one row of keys, and a block mask names the blocks that a tile of queries reads;
within a block, a key's position follows from which block of its sequence the block is. A tile has
consecutive rows of one sequence: one row when it decodes, `CHUNK_ROWS` of a chunk, where the last
tile is padded with rows whose results are dropped. All of it is made on the device from block
tables and positions. The number of tiles is padded to a power of two and tables to the longest
that the model allows, so there are few shapes to compile and a CUDA graph can hold one of them.

On the CPU the same functions run uncompiled, for tests against `attend_dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span
from banyan_engine.spec import ModelSpec

CHUNK_ROWS = 64
MIN_KERNEL_ROWS = 16
"""Queries that the compiled kernel takes at a time, at least."""
MAX_KERNEL_KEYS = 64
"""Keys that it takes at a time, at most; they divide a block."""
MAX_COMPILED = 128
"""Variants of the kernel, by number of tiles and window, before torch refuses another."""


class Tiles(NamedTuple):
    """Queries at `num_rows` consecutive positions each, and what they read, on the device.

    `starts` int64 [tiles]: position of the first row. `places` int32 [tiles, blocks of the pool
    + 1]: which block of the tile's sequence that is, -1 if none. `masks`: by window.
    """

    num_rows: int
    starts: Tensor
    places: Tensor
    masks: dict[int | None, BlockMask]


def table_width(spec: ModelSpec, kv: PagedKv) -> int:
    """Blocks of the longest sequence that there can be."""
    return min(-(-spec.context_tokens // kv.block_size), kv.num_blocks)


def padded_tiles(num_tiles: int) -> int:
    """The next power of two."""
    return 1 << (num_tiles - 1).bit_length()


def lay_tiles(kv: PagedKv, tables: Tensor, starts: Tensor, num_rows: int) -> Tiles:
    """From a block table per tile, int64 [tiles, width], padded with the pool's zero block."""
    shape = (len(tables), kv.num_blocks + 1)
    places = torch.full(shape, -1, dtype=torch.int32, device=kv.device)
    numbers = torch.arange(tables.shape[1], dtype=torch.int32, device=kv.device)
    places.scatter_(1, tables, numbers.expand(tables.shape))
    places[:, kv.zero_block_id] = -1
    tiles = Tiles(num_rows, starts, places, {})
    for window in dict.fromkeys(layer.window for layer in kv.layout.layers):
        tiles.masks[window] = _block_mask(kv, tables, tiles, window)
    return tiles


def _block_mask(kv: PagedKv, tables: Tensor, tiles: Tiles, window: int | None) -> BlockMask:
    """The blocks from the first that a tile's first row sees to the one its last row is in."""
    size, width = kv.block_size, tables.shape[1]
    first = torch.zeros_like(tiles.starts)
    if window is not None:
        first = (tiles.starts - window + 1).clamp_min(0) // size
    past = ((tiles.starts + tiles.num_rows - 1) // size + 1).clamp_max(width)
    columns = first[:, None] + torch.arange(width, device=kv.device)
    block_ids = tables.gather(1, columns.clamp_max(width - 1))
    return BlockMask.from_kv_blocks(
        (past - first).to(torch.int32)[:, None, None],
        block_ids.to(torch.int32)[:, None, None, :],
        BLOCK_SIZE=(CHUNK_ROWS, size),  # a tile is one block of queries, filled or not
        mask_mod=_visible(tiles.starts, tiles.places, size, window),
        seq_lengths=(tiles.num_rows, (kv.num_blocks + 1) * size),
        compute_q_blocks=False,
    )


def _visible(
    starts: Tensor, places: Tensor, block_size: int, window: int | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a row of a tile sees a slot of the pool."""

    def visible(tile: Tensor, _head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        place = places[tile, slot // block_size]
        key = place * block_size + slot % block_size
        position = starts[tile] + row
        seen = (place >= 0) & (key <= position)
        return seen if window is None else seen & (key > position - window)

    return visible


@cache
def _capped(soft_cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, _tile: Tensor, _head: Tensor, _row: Tensor, _slot: Tensor) -> Tensor:
        return torch.tanh(score / soft_cap) * soft_cap

    return capped


def attend_tiles(spec: ModelSpec, kv: PagedKv, layer: int, q: Tensor, tiles: Tiles) -> Tensor:
    """q [tiles * rows, heads, head_dim] to the same shape; rows past a chunk's end are junk."""
    keys, values = (pool.flatten(0, 1).transpose(0, 1)[None] for pool in kv.pools(layer))
    rows = q.view(-1, tiles.num_rows, *q.shape[1:]).transpose(1, 2)
    cap = spec.attention_soft_cap
    attended = _kernel(kv.device)(
        rows.to(keys.dtype),
        keys,
        values,
        score_mod=None if cap is None else _capped(cap),
        block_mask=tiles.masks[kv.layout.layers[layer].window],
        scale=spec.attention_scale,
        enable_gqa=rows.shape[1] != keys.shape[1],
        kernel_options=_tiling(tiles.num_rows, rows.shape[1] // keys.shape[1], kv.block_size),
    )
    made: Tensor = attended.transpose(1, 2).reshape(q.shape).to(q.dtype)
    return made


def _tiling(num_rows: int, group: int, block_size: int) -> dict[str, int]:
    """The kernel's own tiles must divide those of the block mask; it does not see to that."""
    height = CHUNK_ROWS if num_rows > 1 else max(padded_tiles(group), MIN_KERNEL_ROWS)
    return {"BLOCK_M": height, "BLOCK_N": min(block_size & -block_size, MAX_KERNEL_KEYS)}


def _kernel(device: torch.device) -> Callable[..., Any]:
    plain: Callable[..., Any] = cast(Any, flex_attention)
    return _compiled() if device.type == "cuda" else plain


@cache
def _compiled() -> Callable[..., Any]:
    """Static shapes: the kernel that splits long contexts for decoding is only taken for them."""
    torch._dynamo.config.recompile_limit = MAX_COMPILED
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return compiled


class _Part(NamedTuple):
    """Tiles of one height; the rows of the batch that they are made of, and the rows of theirs
    that go back, to `targets`."""

    tiles: Tiles
    rows: Tensor
    kept: Tensor
    targets: Tensor


class FlexAttention:
    """Attention for one step's batch, as `PagedAttention` is on the CPU."""

    def __init__(self, spec: ModelSpec, kv: PagedKv, spans: Sequence[Span]) -> None:
        self._spec = spec
        self._kv = kv
        singles: list[tuple[int, Span]] = []
        chunks: list[tuple[int, Span]] = []
        row = 0
        for span in spans:
            (singles if span.num_tokens == 1 else chunks).append((row, span))
            row += span.num_tokens
        width = table_width(spec, kv)
        self._parts = [
            _part(kv, members, num_rows, width)
            for members, num_rows in ((singles, 1), (chunks, CHUNK_ROWS))
            if members
        ]

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [tokens of the batch, heads, head_dim] to the same shape."""
        attended = torch.empty_like(q)
        for part in self._parts:
            rows = q.index_select(0, part.rows)
            made = attend_tiles(self._spec, self._kv, layer, rows, part.tiles)
            attended.index_copy_(0, part.targets, made.index_select(0, part.kept))
        return attended


def _part(kv: PagedKv, members: Sequence[tuple[int, Span]], num_rows: int, width: int) -> _Part:
    """Of spans, each with its first row in the batch. Padding repeats the first tile."""
    tiles = [
        (span, first, begin)
        for first, span in members
        for begin in range(0, span.num_tokens, num_rows)
    ]
    rows: list[int] = []
    kept: list[int] = []
    for span, first, begin in tiles:
        kept += range(len(rows), len(rows) + min(num_rows, span.num_tokens - begin))
        rows += [first + min(begin + row, span.num_tokens - 1) for row in range(num_rows)]
    targets = [rows[row] for row in kept]
    num_padding = padded_tiles(len(tiles)) - len(tiles)
    tiles += tiles[:1] * num_padding
    rows += rows[:num_rows] * num_padding
    tables = tables_of(kv, [span for span, _, _ in tiles], width)
    starts = _on(kv, [span.start + begin for span, _, begin in tiles])
    laid = lay_tiles(kv, tables, starts, num_rows)
    return _Part(laid, _on(kv, rows), _on(kv, kept), _on(kv, targets))


def _on(kv: PagedKv, numbers: list[int]) -> Tensor:
    return torch.tensor(numbers).to(kv.device)


def tables_of(kv: PagedKv, spans: Sequence[Span], width: int) -> Tensor:
    """Block tables on the device; only what the longest needs is sent there."""
    lengths = [-(-span.end // kv.block_size) for span in spans]
    tables = torch.full((len(spans), max(lengths)), kv.zero_block_id)
    for table, span, length in zip(tables, spans, lengths, strict=True):
        table[:length] = span.block_table[:length]
    padding = (0, width - tables.shape[1])
    return F.pad(tables.to(kv.device), padding, value=kv.zero_block_id)
