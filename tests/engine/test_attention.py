"""The plain reference judges both fast ways, over lengths at and around every boundary."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from banyan_core.types import KvLayer, KvLayout
from banyan_engine.attention import PagedAttention, attend_dense
from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span
from banyan_engine.tiled_forward import TILE_TOKENS, attend_tile, first_key

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 2, 8, 4
BLOCKS_EACH = 24
SCALE = 0.3


def rows(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_heads, HEAD_DIM, generator=generator)


def span(number: int, start: int, end: int) -> Span:
    first = number * BLOCKS_EACH
    # Scattered: every second block of the sequence's share from behind.
    blocks = [*range(first + BLOCKS_EACH - 1, first, -2), *range(first, first + BLOCKS_EACH, 2)]
    return Span(torch.ones(end - start, dtype=torch.int64), start, torch.tensor(blocks), 1)


def spelled_out(q: Tensor, k: Tensor, v: Tensor, window: int, soft_cap: float) -> Tensor:
    """Attention by the book, one number at a time, to judge the judge."""
    result = torch.zeros_like(q)
    offset, group = len(k) - len(q), q.shape[1] // k.shape[1]
    for row in range(len(q)):
        for head in range(q.shape[1]):
            own = offset + row
            seen = [i for i in range(own + 1) if own - i < window]
            scores = [float(q[row, head] @ k[i, head // group]) * SCALE for i in seen]
            scores = [soft_cap * math.tanh(score / soft_cap) for score in scores]
            weights = torch.tensor(scores).softmax(0)
            for i, weight in zip(seen, weights, strict=True):
                result[row, head] += weight * v[i, head // group]
    return result


@pytest.mark.parametrize("num_new, num_all", [(1, 1), (3, 3), (1, 9), (5, 9)])
def test_the_reference_is_attention_by_the_book(num_new: int, num_all: int) -> None:
    q = rows(num_new, 4, 1)
    k, v = rows(num_all, NUM_KV_HEADS, 2), rows(num_all, NUM_KV_HEADS, 3)
    plain, wanted = attend_dense(q, k, v, SCALE), spelled_out(q, k, v, 99, 1e6)
    assert torch.allclose(plain, wanted, atol=1e-5)
    for window, soft_cap in ((1, 2.0), (3, 0.5), (20, 2.0)):
        found = attend_dense(q, k, v, SCALE, window, soft_cap)
        assert torch.allclose(found, spelled_out(q, k, v, window, soft_cap), atol=1e-6)


def pool(num_blocks: int, window: int | None = None) -> PagedKv:
    layer = KvLayer(NUM_KV_HEADS, HEAD_DIM, HEAD_DIM, window)
    return PagedKv(KvLayout((layer,), "float32"), num_blocks, BLOCK_SIZE)


@pytest.mark.parametrize("num_heads", [2, 4, 6])
@pytest.mark.parametrize("window, soft_cap", [(None, None), (1, None), (7, 1.5), (64, None)])
@pytest.mark.parametrize(
    "bounds",
    [
        [(0, 1)],
        [(0, 7)],
        [(3, 4), (4, 5), (7, 8), (8, 9)],
        [(0, 33), (12, 20), (63, 64), (0, 1), (90, 91), (31, 32), (89, 96)],
    ],
)
def test_paged_attention_agrees_with_the_reference(
    num_heads: int,
    window: int | None,
    soft_cap: float | None,
    bounds: list[tuple[int, int]],
) -> None:
    kv = pool(BLOCKS_EACH * len(bounds), window)
    spans = [span(number, start, end) for number, (start, end) in enumerate(bounds)]
    wanted, queries = [], []
    for number, (start, end) in enumerate(bounds):
        k, v = rows(end, NUM_KV_HEADS, 2 * number), rows(end, NUM_KV_HEADS, 2 * number + 1)
        kv.write(0, kv.slots(0, end, spans[number].block_table), k, v)
        queries.append(rows(end - start, num_heads, 100 + number))
        wanted.append(attend_dense(queries[-1], k, v, SCALE, window, soft_cap))
    attention = PagedAttention(kv, spans, SCALE, soft_cap, torch.float32, None)
    assert torch.allclose(attention.attend(0, torch.cat(queries)), torch.cat(wanted), atol=2e-6)


def test_a_neighbours_nan_stays_with_the_neighbour() -> None:
    kv = pool(2 * BLOCKS_EACH)
    spans = [span(0, 4, 5), span(1, 6, 7)]
    poison = torch.full((7, NUM_KV_HEADS, HEAD_DIM), torch.nan)
    kv.write(0, kv.slots(0, 7, spans[1].block_table), poison, poison)
    k, v = rows(5, NUM_KV_HEADS, 1), rows(5, NUM_KV_HEADS, 2)
    kv.write(0, kv.slots(0, 5, spans[0].block_table), k, v)
    q = rows(2, 4, 3)
    attended = PagedAttention(kv, spans, SCALE, None, torch.float32, None).attend(0, q)
    assert torch.allclose(attended[:1], attend_dense(q[:1], k, v, SCALE), atol=1e-6)
    assert attended[1].isnan().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("window, soft_cap", [(None, None), (7, 1.5)])
def test_a_mixed_batch_is_the_same_with_the_helper(
    helper: ctypes.CDLL, dtype: str, window: int | None, soft_cap: float | None
) -> None:
    """Chunks and single tokens; both ways read the same stored numbers."""
    bounds = [(0, 33), (62, 63), (0, 1), (89, 96), (90, 91)]
    kv = PagedKv(
        KvLayout((KvLayer(NUM_KV_HEADS, 32, 32, window),), dtype), BLOCKS_EACH * 5, BLOCK_SIZE
    )
    spans = [span(number, start, end) for number, (start, end) in enumerate(bounds)]
    for each in spans:
        k, v = (torch.randn(each.end, NUM_KV_HEADS, 32) for _ in ("keys", "values"))
        kv.write(0, kv.slots(0, each.end, each.block_table), k, v)
    q = torch.randn(sum(each.num_tokens for each in spans), 4, 32)
    found, wanted = (
        PagedAttention(kv, spans, SCALE, soft_cap, torch.float32, each).attend(0, q)
        for each in (helper, None)
    )
    assert torch.allclose(found, wanted, atol=1e-5)
    decodes = PagedAttention(kv, spans[1:3], SCALE, soft_cap, torch.float32, helper)
    assert torch.allclose(decodes.attend(0, q[33:35]), wanted[33:35], atol=1e-5)


@pytest.mark.parametrize("num_heads", [2, 4])
@pytest.mark.parametrize("num_tiles", [1, 2, 5])
@pytest.mark.parametrize("window, soft_cap", [(None, None), (1, None), (16, 1.5), (40, None)])
def test_a_tile_agrees_with_the_reference(
    num_heads: int, num_tiles: int, window: int | None, soft_cap: float | None
) -> None:
    q, end = rows(TILE_TOKENS, num_heads, 1), num_tiles * TILE_TOKENS
    k, v = rows(end, NUM_KV_HEADS, 2), rows(end, NUM_KV_HEADS, 3)
    begin = first_key(end, window)
    found = attend_tile(q, k[begin:], v[begin:], SCALE, window, soft_cap)
    assert torch.allclose(found, attend_dense(q, k, v, SCALE, window, soft_cap), atol=1e-6)
