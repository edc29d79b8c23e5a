"""Causal attention of new tokens over everything before them, in two ways.

`attend_dense` is the definition, plain and slow; it stays and judges. `PagedAttention` computes
the same for a whole step's batch over blocks. It treats two shapes apart, because their costs
differ: chunks go one by one; single tokens (decode) of many sequences go together. The compiled
helper reads the blocks of both in place. Without it they are gathered, those of single tokens
padded to the longest of their group, and the query heads that share a KV head are handled as rows
of one product, so that K and V are read once and never repeated. On a GPU `paged_flex` takes its
place.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.kernels import chunks, native
from banyan_engine.paged_flex import FlexAttention
from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span
from banyan_engine.spec import ModelSpec

GROUP_BLOCKS = 128
"""Blocks that decode gathers at a time: more would not stay in a core's cache until used."""


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """The reference. q [n, heads, head_dim] are the last n of the tokens of k, v [m, kv_heads, ..].

    A token sees the last `window` tokens, itself among them. Returns [n, heads, head_dim].
    """
    num_new, num_all, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if soft_cap is not None:
        scores = (scores / soft_cap).tanh() * soft_cap
    visible = torch.ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
    if window is not None:
        visible = visible.triu(num_all - num_new - window + 1)
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", probabilities, v)


class _Chunk(NamedTuple):
    """Several tokens of one sequence; `mask` [tokens, keys], or None when it is plainly causal."""

    rows: slice
    keys: slice
    block_ids: Tensor
    mask: Tensor | None


class _DecodeGroup(NamedTuple):
    """One token each of sequences of like length; `mask` [sequences, 1, 1, padded length]."""

    rows: Tensor
    block_ids: Tensor
    mask: Tensor


class _View(NamedTuple):
    """What the spans that torch attends for see in the layers of one window."""

    chunks: list[_Chunk]
    groups: list[_DecodeGroup]


class _Helped(NamedTuple):
    """Single tokens that the compiled helper attends for, and which rows of the batch they are."""

    helper: ctypes.CDLL
    places: Tensor
    rows: native.Rows


class _Placed(NamedTuple):
    """A span, and which row of the batch is its first."""

    row: int
    span: Span

    @property
    def rows(self) -> slice:
        """All its rows of the batch."""
        return slice(self.row, self.row + self.span.num_tokens)


class Attention(Protocol):
    """Attention for one step's batch, of either backend."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [tokens of the batch, heads, head_dim] to the same shape."""
        ...


def step_attention(
    spec: ModelSpec, kv: PagedKv, spans: Sequence[Span], dtype: torch.dtype
) -> Attention:
    """The backend for the device that the pool is on: here and nowhere else is it chosen."""
    if kv.device.type != "cpu":
        return FlexAttention(spec, kv, spans)
    scale, soft_cap = spec.attention_scale, spec.attention_soft_cap
    return PagedAttention(kv, spans, scale, soft_cap, dtype, native.library())


class PagedAttention:
    """Attention for one step's batch: built once, used in each layer after its K, V are written.

    `helper` is the compiled one, or None to do without.
    """

    def __init__(
        self,
        kv: PagedKv,
        spans: Sequence[Span],
        scale: float,
        soft_cap: float | None,
        dtype: torch.dtype,
        helper: ctypes.CDLL | None,
    ) -> None:
        self._kv = kv
        self._scale = scale
        self._soft_cap = soft_cap
        self._helper = helper
        pools = [kv.pools(layer) for layer in range(kv.layout.num_layers)]
        singles, several = _by_shape(spans)
        self._helped = None
        if helper and singles and all(native.can_attend(dtype, each) for each in pools):
            self._helped, singles = _helped(helper, singles), []
        can_chunks = helper and all(chunks.can_attend(dtype, each) for each in pools)
        self._helped_chunks, several = (several, []) if can_chunks else ([], several)
        self._views = {
            window: _View(
                [_chunk(kv, each, window, dtype) for each in several],
                [
                    _decode_group(kv, each, window, dtype)
                    for each in _alike(singles, kv.block_size, window)
                ],
            )
            for window in dict.fromkeys(layer.window for layer in kv.layout.layers)
        }

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [tokens of the batch, heads, head_dim] to the same shape."""
        view = self._views[self._kv.layout.layers[layer].window]
        if self._helped is not None and len(self._helped.places) == len(q):
            return self._attend_helped(layer, q, self._helped)
        attended = q.new_empty(q.shape)
        if self._helped is not None:
            part = self._attend_helped(layer, q[self._helped.places], self._helped)
            attended.index_copy_(0, self._helped.places, part)
        for placed in self._helped_chunks:
            self._attend_helped_chunk(layer, q[placed.rows], placed.span, attended[placed.rows])
        for chunk in view.chunks:
            attended[chunk.rows] = self._attend_chunk(layer, q[chunk.rows], chunk)
        for group in view.groups:
            attended.index_copy_(0, group.rows, self._attend_group(layer, q[group.rows], group))
        return attended

    def _attend_helped(self, layer: int, q: Tensor, helped: _Helped) -> Tensor:
        return native.attend(
            q,
            self._kv.pools(layer),
            helped.rows,
            scale=self._scale,
            window=self._kv.layout.layers[layer].window,
            softcap=self._soft_cap,
            helper=helped.helper,
        )

    def _attend_helped_chunk(self, layer: int, q: Tensor, span: Span, out: Tensor) -> None:
        assert self._helper is not None
        chunks.attend(
            q,
            self._kv.pools(layer),
            span.start,
            span.block_table,
            out,
            scale=self._scale,
            window=self._kv.layout.layers[layer].window,
            softcap=self._soft_cap,
            helper=self._helper,
        )

    def _attend_chunk(self, layer: int, q: Tensor, chunk: _Chunk) -> Tensor:
        keys, values = self._kv.gather(layer, chunk.block_ids)
        k = keys[chunk.keys].transpose(0, 1)[None].to(q.dtype)
        v = values[chunk.keys].transpose(0, 1)[None].to(q.dtype)
        return self._attend(q.transpose(0, 1)[None], k, v, chunk.mask)[0].transpose(0, 1)

    def _attend_group(self, layer: int, q: Tensor, group: _DecodeGroup) -> Tensor:
        keys, values = self._kv.gather(layer, group.block_ids)
        shape = (len(q), -1, *keys.shape[1:])
        k = keys.view(shape).transpose(1, 2).to(q.dtype)
        v = values.view(shape).transpose(1, 2).to(q.dtype)
        rows = q.view(len(q), shape[2], -1, q.shape[-1])
        return self._attend(rows, k, v, group.mask).reshape(q.shape)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """[sequences, heads, rows, head_dim]; no mask is the causal one."""
        if self._soft_cap is None:
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self._scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        cap, group = self._soft_cap, q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = (q @ k.transpose(-1, -2) * (self._scale / cap)).tanh() * cap
        if mask is None:
            mask = torch.full(scores.shape[-2:], -torch.inf, dtype=q.dtype).triu(1)
        return (scores + mask).softmax(dim=-1) @ v


def _by_shape(spans: Sequence[Span]) -> tuple[list[_Placed], list[_Placed]]:
    """Those of one token, and those of several."""
    ends = itertools.accumulate(span.num_tokens for span in spans)
    placed = [_Placed(end - span.num_tokens, span) for end, span in zip(ends, spans, strict=True)]
    singles = [each for each in placed if each.span.num_tokens == 1]
    return singles, [each for each in placed if each.span.num_tokens > 1]


def _helped(helper: ctypes.CDLL, singles: Sequence[_Placed]) -> _Helped:
    spans = [span for _, span in singles]
    rows = native.rows([span.start for span in spans], [span.block_table for span in spans])
    return _Helped(helper, torch.tensor([row for row, _ in singles]), rows)


def _seen_blocks(span: Span, block_size: int, window: int | None) -> slice:
    """The blocks of a span's table that its tokens attend to."""
    first = 0 if window is None else max(span.start - window + 1, 0) // block_size
    return slice(first, -(-span.end // block_size))


def _hidden(positions: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a token must not see, by their positions; shapes broadcast."""
    hidden = keys > positions
    return hidden if window is None else hidden | (keys <= positions - window)


def _chunk(kv: PagedKv, placed: _Placed, window: int | None, dtype: torch.dtype) -> _Chunk:
    span = placed.span
    blocks = _seen_blocks(span, kv.block_size, window)
    begin = blocks.start * kv.block_size
    mask = None
    if span.start or (window is not None and span.end > window):
        positions = torch.arange(span.start, span.end)[:, None]
        hidden = _hidden(positions, torch.arange(begin, span.end), window)
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    return _Chunk(placed.rows, slice(0, span.end - begin), span.block_table[blocks], mask)


def _alike(singles: Sequence[_Placed], block_size: int, window: int | None) -> list[list[_Placed]]:
    """Cut into groups of at most GROUP_BLOCKS padded blocks, like lengths together."""
    groups: list[list[_Placed]] = []
    for member in sorted(singles, key=lambda member: member.span.start):
        blocks = _seen_blocks(member.span, block_size, window)
        if not groups or (len(groups[-1]) + 1) * (blocks.stop - blocks.start) > GROUP_BLOCKS:
            groups.append([])
        groups[-1].append(member)
    return groups


def _decode_group(
    kv: PagedKv, members: Sequence[_Placed], window: int | None, dtype: torch.dtype
) -> _DecodeGroup:
    blocks = [_seen_blocks(span, kv.block_size, window) for _, span in members]
    num_blocks = max(each.stop - each.start for each in blocks)
    tables = torch.full((len(members), num_blocks), kv.zero_block_id)
    for table, (_, span), each in zip(tables, members, blocks, strict=True):
        table[: each.stop - each.start] = span.block_table[each]
    begins = torch.tensor([each.start * kv.block_size for each in blocks])[:, None]
    positions = torch.tensor([span.start for _, span in members])[:, None]
    keys = begins + torch.arange(num_blocks * kv.block_size)
    hidden = _hidden(positions, keys, window)
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    rows = torch.tensor([row for row, _ in members])
    return _DecodeGroup(rows, tables.flatten(), mask[:, None, None, :])
