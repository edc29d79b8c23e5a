"""The plain reference judges both fast ways, over lengths at and around every boundary."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from banyan_core.types import KvLayout
from banyan_engine.attention import PagedAttention, attend_dense
from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span
from banyan_engine.tiled_forward import TILE_TOKENS, attend_tile

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 2, 8, 4
BLOCKS_EACH = 24


def rows(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_heads, HEAD_DIM, generator=generator)


def span(number: int, start: int, end: int) -> Span:
    first = number * BLOCKS_EACH
    # Scattered: every second block of the sequence's share from behind.
    blocks = [*range(first + BLOCKS_EACH - 1, first, -2), *range(first, first + BLOCKS_EACH, 2)]
    return Span(torch.ones(end - start, dtype=torch.int64), start, torch.tensor(blocks), 1)


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the book, one number at a time, to judge the judge."""
    result = torch.zeros_like(q)
    offset, group = len(k) - len(q), q.shape[1] // k.shape[1]
    for row in range(len(q)):
        for head in range(q.shape[1]):
            seen = range(offset + row + 1)
            scores = [float(q[row, head] @ k[i, head // group]) / HEAD_DIM**0.5 for i in seen]
            weights = torch.tensor(scores).softmax(0)
            for i in seen:
                result[row, head] += weights[i] * v[i, head // group]
    return result


@pytest.mark.parametrize("num_new, num_all", [(1, 1), (3, 3), (1, 9), (5, 9)])
def test_the_reference_is_attention_by_the_book(num_new: int, num_all: int) -> None:
    q = rows(num_new, 4, 1)
    k, v = rows(num_all, NUM_KV_HEADS, 2), rows(num_all, NUM_KV_HEADS, 3)
    assert torch.allclose(attend_dense(q, k, v), spelled_out(q, k, v), atol=1e-6)


def paged_agrees(num_heads: int, bounds: Sequence[tuple[int, int]]) -> None:
    kv = PagedKv(
        KvLayout(1, NUM_KV_HEADS, HEAD_DIM, "float32"), BLOCKS_EACH * len(bounds), BLOCK_SIZE
    )
    spans = [span(number, start, end) for number, (start, end) in enumerate(bounds)]
    wanted, queries = [], []
    for number, (start, end) in enumerate(bounds):
        k, v = rows(end, NUM_KV_HEADS, 2 * number), rows(end, NUM_KV_HEADS, 2 * number + 1)
        kv.write(0, kv.slots(0, end, spans[number].block_table), k, v)
        queries.append(rows(end - start, num_heads, 100 + number))
        wanted.append(attend_dense(queries[-1], k, v))
    attention = PagedAttention(kv, spans, torch.float32)
    assert torch.allclose(attention.attend(0, torch.cat(queries)), torch.cat(wanted), atol=2e-6)


@pytest.mark.parametrize("num_heads", [2, 4, 6])
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
    num_heads: int, bounds: list[tuple[int, int]]
) -> None:
    paged_agrees(num_heads, bounds)


def test_a_neighbours_nan_stays_with_the_neighbour() -> None:
    kv = PagedKv(KvLayout(1, NUM_KV_HEADS, HEAD_DIM, "float32"), 2 * BLOCKS_EACH, BLOCK_SIZE)
    spans = [span(0, 4, 5), span(1, 6, 7)]
    poison = torch.full((7, NUM_KV_HEADS, HEAD_DIM), torch.nan)
    kv.write(0, kv.slots(0, 7, spans[1].block_table), poison, poison)
    k, v = rows(5, NUM_KV_HEADS, 1), rows(5, NUM_KV_HEADS, 2)
    kv.write(0, kv.slots(0, 5, spans[0].block_table), k, v)
    q = rows(2, 4, 3)
    attended = PagedAttention(kv, spans, torch.float32).attend(0, q)
    assert torch.allclose(attended[:1], attend_dense(q[:1], k, v), atol=1e-6)
    assert attended[1].isnan().all()


@pytest.mark.parametrize("num_heads", [2, 4])
@pytest.mark.parametrize("num_tiles", [1, 2, 5])
def test_a_tile_agrees_with_the_reference(num_heads: int, num_tiles: int) -> None:
    q, end = rows(TILE_TOKENS, num_heads, 1), num_tiles * TILE_TOKENS
    k, v = rows(end, NUM_KV_HEADS, 2), rows(end, NUM_KV_HEADS, 3)
    assert torch.allclose(attend_tile(q, k, v), attend_dense(q, k, v), atol=1e-6)
