"""The helper's attention of chunks over blocks against plain float32 arithmetic.

Tolerance: 2e-2 of values of size 1, as weights of values and results are rounded to 8 bits.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from banyan_core.types import KvLayer, KvLayout
from banyan_engine.attention import PagedAttention, attend_dense
from banyan_engine.kernels import chunks
from banyan_engine.kernels.native import Pools
from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span

BF16 = torch.bfloat16
BLOCK_SIZE = 16
TOLERANCE = 2e-2
BOUNDS = [(0, 2), (0, 130), (7, 12), (100, 300), (127, 129), (255, 520)]
"""Starts and ends of chunks: the least, several tiles of keys, between and over their edges."""
SHAPES = [
    ((1, 1), (64, 64)),
    ((6, 2), (80, 48)),
    ((4, 2), (16, 16)),
    ((7, 1), (128, 64)),
    ((8, 4), (256, 256)),
]
"""Heads by the groups that they make (1, 3, 2, 7, 2), with channels that end between steps of the
kernel, at the least, unequal, many."""


def filled(
    heads: int, dims: tuple[int, int], dtype: str, num_tokens: int
) -> tuple[PagedKv, Tensor]:
    """A pool with one sequence of random K and V, and its scattered block table."""
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    kv = PagedKv(KvLayout((KvLayer(heads, *dims, None),), dtype), num_blocks + 3, BLOCK_SIZE)
    table = torch.randperm(num_blocks + 3)[:num_blocks]
    k, v = (torch.randn(num_tokens, heads, dim).to(BF16) for dim in dims)
    kv.write(0, kv.slots(0, num_tokens, table), k, v)
    return kv, table


def check(found: Tensor, q: Tensor, kv: PagedKv, table: Tensor, end: int, *how: object) -> None:
    """`how` is scale, window and soft cap."""
    k, v = (rows[:end].float() for rows in kv.gather(0, table))
    wanted = attend_dense(q.float(), k, v, *how)  # type: ignore[arg-type]
    atol = TOLERANCE * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("heads, dims", SHAPES)
@pytest.mark.parametrize(
    "window, softcap", [(None, None), (1, None), (20, None), (140, 5.0), (None, 5.0)]
)
def test_chunks_of_many_lengths(  # type: ignore[no-untyped-def]
    helper: ctypes.CDLL, dtype: str, heads, dims, window, softcap
) -> None:
    for start, end in BOUNDS:
        kv, table = filled(heads[1], dims, dtype, end)
        assert chunks.can_attend(BF16, kv.pools(0))
        q = torch.randn(end - start, heads[0], dims[0]).to(BF16)
        out = torch.full((end - start, heads[0], dims[1]), torch.nan, dtype=BF16)
        how = {"scale": 0.2, "window": window, "softcap": softcap}
        chunks.attend(q, kv.pools(0), start, table, out, **how, helper=helper)
        check(out, q, kv, table, end, 0.2, window, softcap)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_queries_may_lie_apart(helper: ctypes.CDLL, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    kv, table = filled(2, (32, 32), "bfloat16", 400)
    qkv = torch.randn(400, 8, 32).to(BF16)
    for q in (qkv[:, :4], qkv[:, ::2]):
        out = torch.empty(400, 4, 32, dtype=BF16)
        how = {"scale": 0.2, "window": None, "softcap": None}
        chunks.attend(q, kv.pools(0), 0, table, out, **how, helper=helper)  # type: ignore[arg-type]
        check(out, q, kv, table, 400, 0.2)


def test_large_scores_do_not_overflow(helper: ctypes.CDLL) -> None:
    kv, table = filled(2, (32, 32), "bfloat16", 200)
    q = torch.randn(200, 2, 32).to(BF16) * 1e4
    out = torch.empty_like(q)
    chunks.attend(
        q, kv.pools(0), 0, table, out, scale=1.0, window=None, softcap=None, helper=helper
    )
    check(out, q, kv, table, 200, 1.0)


def test_what_is_no_number_is_seen_by_those_alone_who_see_it(helper: ctypes.CDLL) -> None:
    """Other blocks of the pool, and slots past the end of the sequence, are not read."""
    kv, table = filled(1, (32, 32), "bfloat16", 150)
    for pool in kv.pools(0):
        others = [block for block in range(len(pool)) if block not in table.tolist()]
        pool[others] = torch.nan
        pool[table[-1], 150 % BLOCK_SIZE :] = torch.nan
    q = torch.randn(150, 2, 32).to(BF16)
    q[140] = torch.nan
    out = torch.empty_like(q)
    chunks.attend(
        q, kv.pools(0), 0, table, out, scale=0.2, window=None, softcap=None, helper=helper
    )
    assert out[140].isnan().all()
    assert out[:140].isfinite().all()
    assert out[141:].isfinite().all()


def test_a_batch_of_chunks_and_single_tokens(helper: ctypes.CDLL) -> None:
    bounds = [(0, 33), (62, 63), (0, 1), (89, 96), (90, 91)]
    kv = PagedKv(KvLayout((KvLayer(2, 32, 32, 40),), "bfloat16"), 40, BLOCK_SIZE)
    spans = []
    for number, (start, end) in enumerate(bounds):
        table = torch.arange(number * 8, number * 8 + 8)
        spans.append(Span(torch.zeros(end - start, dtype=torch.int64), start, table, 1))
        k, v = (torch.randn(end, 2, 32).to(BF16) for _ in ("keys", "values"))
        kv.write(0, kv.slots(0, end, table), k, v)
    q = torch.randn(sum(each.num_tokens for each in spans), 4, 32).to(BF16)
    found, wanted = (
        PagedAttention(kv, spans, 0.2, None, dtype, each).attend(0, q.to(dtype)).float()
        for each, dtype in ((helper, BF16), (None, torch.float32))
    )
    assert torch.allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("dims", [(8, 8), (64, 0), (24, 24)])
def test_what_it_has_no_code_for_is_said(dtype: torch.dtype, dims: tuple[int, int]) -> None:
    pools = Pools(*(torch.zeros(1, BLOCK_SIZE, 1, dim, dtype=dtype) for dim in dims))
    assert not chunks.can_attend(BF16, pools)
    fitting = Pools(*(torch.zeros(1, BLOCK_SIZE, 1, 32, dtype=dtype) for _ in dims))
    assert chunks.can_attend(BF16, fitting) == (dtype == BF16)
    assert not chunks.can_attend(torch.float32, fitting)
