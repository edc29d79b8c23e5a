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

from banyan_engine.lora import LoraRows, lora_of_all
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv, Slots
from banyan_engine.rope import Rotation
from banyan_engine.spans import Span
from banyan_engine.spec import ModelSpec

TILE_TOKENS = 16


class _Tiled(NamedTuple):
    """One span in whole tiles; its own tokens are `rows` of them, laid end to end."""

    slots: Slots
    block_ids: Tensor
    rows: slice
    end_tile: int
    num_sampled_tiles: int
    rotations: list[tuple[Rotation, ...]]
    lora: LoraRows | None


def tiled_forward(
    model: Model, kv: PagedKv, spans: Sequence[Span], on_layer: Callable[[int], None]
) -> Tensor:
    """Compute all spans; fp32 logits [sum of num_sampled, vocab], in the order of the spans."""
    cuts = [_tiled(model, kv, span) for span in spans]
    tiles = [_embedded(model, span, cut) for span, cut in zip(spans, cuts, strict=True)]
    for layer in range(model.spec.num_layers):
        queries = [
            _project_and_write(model, kv, layer, cut, xs)
            for cut, xs in zip(cuts, tiles, strict=True)
        ]
        on_layer(layer)
        if layer == model.spec.num_layers - 1:
            # All KV is written: from here on only the tiles that sample are of use.
            tiles, queries = (
                [
                    each[len(each) - cut.num_sampled_tiles :]
                    for each, cut in zip(of, cuts, strict=True)
                ]
                for of in (tiles, queries)
            )
        for index, cut in enumerate(cuts):
            attended = _attend(model.spec, kv, layer, cut, queries[index])
            tiles[index] = [
                model.finish(layer, x, values, cut.lora, whole=True)
                for x, values in zip(tiles[index], attended, strict=True)
            ]
    logits = [
        _sampled_logits(model, span, cut, xs)
        for span, cut, xs in zip(spans, cuts, tiles, strict=True)
        if span.num_sampled
    ]
    return torch.cat(logits) if logits else torch.empty(0, model.spec.vocab_size)


def _tiled(model: Model, kv: PagedKv, span: Span) -> _Tiled:
    first_tile, end_tile = span.start // TILE_TOKENS, -(-span.end // TILE_TOKENS)
    first_sampled_tile = (span.end - span.num_sampled) // TILE_TOKENS
    num_used = -(-span.end // kv.block_size)
    block_ids = torch.full((-(-end_tile * TILE_TOKENS // kv.block_size),), kv.zero_block_id)
    block_ids[:num_used] = span.block_table[:num_used]
    shift = span.start - first_tile * TILE_TOKENS
    positions = torch.arange(first_tile * TILE_TOKENS, end_tile * TILE_TOKENS)
    return _Tiled(
        slots=kv.slots(span.start, span.num_tokens, span.block_table),
        block_ids=block_ids,
        rows=slice(shift, shift + span.num_tokens),
        end_tile=end_tile,
        num_sampled_tiles=end_tile - first_sampled_tile if span.num_sampled else 0,
        rotations=[model.rotations(part) for part in positions.view(-1, TILE_TOKENS)],
        lora=lora_of_all(span.adapter),
    )


def _embedded(model: Model, span: Span, cut: _Tiled) -> list[Tensor]:
    """The span's tokens in their rows of tiles [TILE_TOKENS, hidden], zeros elsewhere."""
    x = torch.zeros(len(cut.rotations) * TILE_TOKENS, model.spec.hidden_size)
    x[cut.rows] = model.embed(span.token_ids)
    return list(x.view(-1, TILE_TOKENS, model.spec.hidden_size))


def _project_and_write(
    model: Model, kv: PagedKv, layer: int, cut: _Tiled, xs: list[Tensor]
) -> list[Tensor]:
    """Write the K and V of the span's own rows; the queries of each tile."""
    projected = [
        model.project(layer, x, rotations, cut.lora)
        for x, rotations in zip(xs, cut.rotations, strict=True)
    ]
    keys = torch.cat([k for _, k, _ in projected])[cut.rows]
    values = torch.cat([v for _, _, v in projected])[cut.rows]
    kv.write(layer, cut.slots, keys, values)
    return [q for q, _, _ in projected]


def _attend(
    spec: ModelSpec, kv: PagedKv, layer: int, cut: _Tiled, queries: list[Tensor]
) -> list[Tensor]:
    """Attention of the last tiles of a span, as many as there are queries."""
    if not queries:
        return []
    keys, values = kv.gather(layer, cut.block_ids)
    window = spec.layers[layer].window
    attended = []
    for q, end in zip(
        queries,
        count((cut.end_tile - len(queries) + 1) * TILE_TOKENS, TILE_TOKENS),
        strict=False,
    ):
        begin = first_key(end, window)
        k, v = keys[begin:end], values[begin:end]
        attended.append(attend_tile(q, k, v, spec.attention_scale, window, spec.attention_soft_cap))
    return attended


def _sampled_logits(model: Model, span: Span, cut: _Tiled, xs: list[Tensor]) -> Tensor:
    """Logits of the span's last `num_sampled` tokens, from the tiles that hold them."""
    logits = torch.cat([model.logits(x) for x in xs])
    end = len(logits) - (cut.end_tile * TILE_TOKENS - span.end)
    return logits[end - span.num_sampled : end]


def first_key(end: int, window: int | None) -> int:
    """The first position, a multiple of TILE_TOKENS, that the tile before `end` looks at."""
    if window is None:
        return 0
    return max(end - TILE_TOKENS - window + 1, 0) // TILE_TOKENS * TILE_TOKENS


def attend_tile(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, soft_cap: float | None
) -> Tensor:
    """Causal attention of one tile, q [TILE_TOKENS, heads, head_dim], to keys up to its end.

    Query heads that share a KV head are rows of one product. Returns the shape of q.
    """
    num_kv_heads, head_dim = k.shape[1:]
    shape = (TILE_TOKENS, num_kv_heads, -1, head_dim)
    rows = q.view(shape).permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)
    scores = torch.bmm(rows, k.permute(1, 2, 0)) * scale
    if soft_cap is not None:
        scores = (scores / soft_cap).tanh() * soft_cap
    by_row = scores.view(num_kv_heads, -1, TILE_TOKENS, len(k))
    by_row[..., -TILE_TOKENS:].masked_fill_(_LATER, -torch.inf)
    if window is not None and len(k) - TILE_TOKENS - window >= 1 - TILE_TOKENS:
        early = torch.ones(TILE_TOKENS, len(k), dtype=torch.bool)
        by_row.masked_fill_(early.tril(len(k) - TILE_TOKENS - window), -torch.inf)
    attended = torch.bmm(scores.softmax(dim=-1), v.transpose(0, 1))
    attended = attended.view(num_kv_heads, -1, TILE_TOKENS, head_dim)
    return attended.permute(2, 0, 1, 3).reshape(q.shape)


_LATER = torch.arange(TILE_TOKENS) > torch.arange(TILE_TOKENS)[:, None]
"""Which keys of its own tile a row must not see. Not by `triu`, which would open an OpenMP pool on
the thread that imports this, for as long as that lives (see `banyan_worker.runners`)."""
