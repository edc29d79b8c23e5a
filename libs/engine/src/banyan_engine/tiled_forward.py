"""Deterministic mode: a token's bits depend on the tokens before it and on nothing else.

The last bits of a sum depend on its order, and libraries choose the order by the shape of the
operands. So the shape must not tell how the work came here. Each sequence is cut at multiples of
TILE_TOKENS absolute positions; the token at position p always sits in row p % TILE_TOKENS of its
tile, and tiles go through each layer one by one, rows without work filled up. Every product then
has the same shape in whole prompts, chunks, single decode steps and any batch, and row r of a
product does not depend on the other rows. Tile t attends to (t + 1) * TILE_TOKENS keys, whether
or not the later ones are there yet: masked, they weigh exactly 0. Threads would split sums by
their number, hence one thread (see `torch_runner`). fp32, so that no rounding hides a difference
in one case and shows it in another.

Equal bits are promised between machines with the same torch and the same kind of CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from banyan_core.runner import PlanItem
from banyan_engine.model import Model, Rotation
from banyan_engine.paged_kv import PagedKv, Slots

TILE_TOKENS = 16


class _Span(NamedTuple):
    """One item's share in whole tiles; its own tokens are `rows` of them, laid end to end."""

    slots: Slots
    block_ids: Tensor
    rows: slice
    end_tile: int
    rotations: list[Rotation]


def tiled_forward(
    model: Model, kv: PagedKv, items: Sequence[PlanItem], on_layer: Callable[[int], None]
) -> Tensor:
    """Compute all items; fp32 logits [items that sample, vocab], in the order of the plan."""
    spans = [_span(model, kv, item) for item in items]
    tiles = [_embedded(model, item, span) for item, span in zip(items, spans, strict=True)]
    for layer in range(model.spec.num_layers):
        queries = [
            _project_and_write(model, kv, layer, span, xs)
            for span, xs in zip(spans, tiles, strict=True)
        ]
        on_layer(layer)
        if layer == model.spec.num_layers - 1:
            # All KV is written: from here on only the last tiles are of use.
            tiles, queries = [xs[-1:] for xs in tiles], [qs[-1:] for qs in queries]
        for index, span in enumerate(spans):
            attended = _attend_span(kv, layer, span, queries[index])
            tiles[index] = [
                model.finish(layer, x, values)
                for x, values in zip(tiles[index], attended, strict=True)
            ]
    logits = [
        model.logits(xs[-1])[(span.rows.stop - 1) % TILE_TOKENS]
        for item, span, xs in zip(items, spans, tiles, strict=True)
        if item.sample
    ]
    return torch.stack(logits) if logits else torch.empty(0, model.spec.vocab_size)


def _span(model: Model, kv: PagedKv, item: PlanItem) -> _Span:
    end = item.start + len(item.token_ids)
    first_tile, end_tile = item.start // TILE_TOKENS, -(-end // TILE_TOKENS)
    num_blocks = -(-end_tile * TILE_TOKENS // kv.block_size)
    used = item.block_table[: -(-end // kv.block_size)]
    padding = (kv.zero_block_id,) * (num_blocks - len(used))
    shift = item.start - first_tile * TILE_TOKENS
    positions = torch.arange(first_tile * TILE_TOKENS, end_tile * TILE_TOKENS)
    return _Span(
        slots=kv.slots(item.start, len(item.token_ids), item.block_table),
        block_ids=torch.tensor(used + padding),
        rows=slice(shift, shift + len(item.token_ids)),
        end_tile=end_tile,
        rotations=[model.rotation(part) for part in positions.view(-1, TILE_TOKENS)],
    )


def _embedded(model: Model, item: PlanItem, span: _Span) -> list[Tensor]:
    """The item's tokens in their rows of tiles [TILE_TOKENS, hidden], zeros elsewhere."""
    x = torch.zeros(len(span.rotations) * TILE_TOKENS, model.spec.hidden_size)
    x[span.rows] = model.embed(torch.tensor(item.token_ids))
    return list(x.view(-1, TILE_TOKENS, model.spec.hidden_size))


def _project_and_write(
    model: Model, kv: PagedKv, layer: int, span: _Span, xs: list[Tensor]
) -> list[Tensor]:
    """Write the K and V of the item's own rows; the queries of each tile."""
    projected = [
        model.project(layer, x, rotation) for x, rotation in zip(xs, span.rotations, strict=True)
    ]
    keys = torch.cat([k for _, k, _ in projected])[span.rows]
    values = torch.cat([v for _, _, v in projected])[span.rows]
    kv.write(layer, span.slots, keys, values)
    return [q for q, _, _ in projected]


def _attend_span(kv: PagedKv, layer: int, span: _Span, queries: list[Tensor]) -> list[Tensor]:
    """Attention of the last tiles of a span, as many as there are queries."""
    keys, values = kv.gather(layer, span.block_ids)
    first_end = (span.end_tile - len(queries) + 1) * TILE_TOKENS
    return [
        attend_tile(q, keys[:end], values[:end])
        for q, end in zip(queries, count(first_end, TILE_TOKENS), strict=False)
    ]


def attend_tile(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one tile, q [TILE_TOKENS, heads, head_dim], to keys up to its end.

    Query heads that share a KV head are rows of one product. Returns the shape of q.
    """
    num_kv_heads, head_dim = k.shape[1:]
    shape = (TILE_TOKENS, num_kv_heads, -1, head_dim)
    rows = q.view(shape).permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)
    scores = torch.bmm(rows, k.permute(1, 2, 0)) * head_dim**-0.5
    own = scores.view(num_kv_heads, -1, TILE_TOKENS, len(k))[..., -TILE_TOKENS:]
    own.masked_fill_(_LATER, -torch.inf)
    attended = torch.bmm(scores.softmax(dim=-1), v.transpose(0, 1))
    attended = attended.view(num_kv_heads, -1, TILE_TOKENS, head_dim)
    return attended.permute(2, 0, 1, 3).reshape(q.shape)


_LATER = torch.ones(TILE_TOKENS, TILE_TOKENS, dtype=torch.bool).triu(1)
"""Which keys of its own tile a row must not see."""
