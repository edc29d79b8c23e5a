"""Causal attention of new tokens over everything before them, in two ways.

`attend_dense` is the definition, plain and slow; it stays and judges. `PagedAttention` computes
the same for a whole step's batch over blocks. It treats two shapes apart, because their costs
differ: single tokens (decode) of many sequences go together, padded to the longest of their
group; chunks go one by one. The query heads that share a KV head are handled as rows of one
product in decode, so that K and V are read once and never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span

GROUP_BLOCKS = 128
"""Blocks that decode gathers at a time: more would not stay in a core's cache until used."""


def attend_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The reference. q [n, heads, head_dim] are the last n of the tokens of k, v [m, kv_heads, ..].

    Returns [n, heads, head_dim].
    """
    num_new, num_all, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    visible = torch.ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v)


class _Chunk(NamedTuple):
    """Several tokens of one sequence; `mask` [tokens, end], or None from position 0 on."""

    rows: slice
    end: int
    block_ids: Tensor
    mask: Tensor | None


class _DecodeGroup(NamedTuple):
    """One token each of sequences of like length; `mask` [sequences, 1, 1, padded length]."""

    rows: Tensor
    block_ids: Tensor
    mask: Tensor


class PagedAttention:
    """Attention for one step's batch: built once, used in each layer after its K, V are written."""

    def __init__(self, kv: PagedKv, spans: Sequence[Span], dtype: torch.dtype) -> None:
        self._kv = kv
        self._chunks: list[_Chunk] = []
        decodes: list[tuple[int, Span]] = []
        row = 0
        for span in spans:
            if span.num_tokens > 1:
                self._chunks.append(_chunk(kv, span, row, dtype))
            else:
                decodes.append((row, span))
            row += span.num_tokens
        self._groups = [
            _decode_group(kv, members, dtype) for members in _alike(decodes, kv.block_size)
        ]

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [tokens of the batch, heads, head_dim] to the same shape."""
        attended = torch.empty_like(q)
        for chunk in self._chunks:
            attended[chunk.rows] = self._attend_chunk(layer, q[chunk.rows], chunk)
        for group in self._groups:
            attended.index_copy_(0, group.rows, self._attend_group(layer, q[group.rows], group))
        return attended

    def _attend_chunk(self, layer: int, q: Tensor, chunk: _Chunk) -> Tensor:
        keys, values = self._kv.gather(layer, chunk.block_ids)
        return F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[: chunk.end].transpose(0, 1)[None],
            values[: chunk.end].transpose(0, 1)[None],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=True,
        )[0].transpose(0, 1)

    def _attend_group(self, layer: int, q: Tensor, group: _DecodeGroup) -> Tensor:
        keys, values = self._kv.gather(layer, group.block_ids)
        shape = (len(q), -1, self._kv.layout.num_kv_heads, q.shape[-1])
        attended = F.scaled_dot_product_attention(
            q.view(len(q), shape[2], -1, q.shape[-1]),
            keys.view(shape).transpose(1, 2),
            values.view(shape).transpose(1, 2),
            attn_mask=group.mask,
        )
        return attended.reshape(q.shape)


def _chunk(kv: PagedKv, span: Span, row: int, dtype: torch.dtype) -> _Chunk:
    table = span.block_table[: -(-span.end // kv.block_size)]
    mask = None
    if span.start:
        mask = torch.full((span.num_tokens, span.end), -torch.inf, dtype=dtype)
        mask = mask.triu(span.start + 1)
    return _Chunk(slice(row, row + span.num_tokens), span.end, table, mask)


def _alike(decodes: Sequence[tuple[int, Span]], block_size: int) -> list[list[tuple[int, Span]]]:
    """Cut into groups of at most GROUP_BLOCKS padded blocks, like lengths together."""
    groups: list[list[tuple[int, Span]]] = []
    for member in sorted(decodes, key=lambda member: member[1].start):
        num_blocks = member[1].start // block_size + 1
        if not groups or (len(groups[-1]) + 1) * num_blocks > GROUP_BLOCKS:
            groups.append([])
        groups[-1].append(member)
    return groups


def _decode_group(
    kv: PagedKv, members: Sequence[tuple[int, Span]], dtype: torch.dtype
) -> _DecodeGroup:
    num_blocks = max(span.start for _, span in members) // kv.block_size + 1
    tables = torch.full((len(members), num_blocks), kv.zero_block_id)
    for table, (_, span) in zip(tables, members, strict=True):
        used = span.start // kv.block_size + 1
        table[:used] = span.block_table[:used]
    last = torch.tensor([span.start for _, span in members])
    hidden = torch.arange(num_blocks * kv.block_size) > last[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)
    rows = torch.tensor([row for row, _ in members])
    return _DecodeGroup(rows, tables.flatten(), mask[:, None, None, :])
