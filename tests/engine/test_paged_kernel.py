"""The helper's attention over blocks against plain float32 arithmetic.

Tolerances: float32 2e-5; bfloat16 1e-2 of values of size 1, as results are rounded to 8 bits.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from banyan_engine.kernels import native
from banyan_engine.kernels.native import Pools

BLOCK_SIZE = 16
TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 2e-5}
LAST = [0, 14, 15, 16, 255, 256, 700]
SHAPES = [
    ((1, 1), (64, 64)),
    ((6, 2), (80, 80)),
    ((16, 8), (16, 16)),
    ((7, 1), (128, 64)),
    ((8, 1), (256, 256)),
]
"""Heads by the groups that they make (1; 3 and 7 are cut in pieces; 2; 8), with channels that end
between steps of the kernel, at the least, unequal, at the most."""


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """One row's attention: q [heads, dim], k and v [tokens, kv_heads, dim]."""
    group = q.shape[0] // k.shape[1]
    scores = torch.einsum("hd,thd->ht", q, k.repeat_interleave(group, 1)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("ht,thd->hd", scores.softmax(-1), v.repeat_interleave(group, 1))


def quantized(rows: Tensor) -> Tensor:
    """Bytes with a float32 scale behind each row."""
    scales = rows.float().abs().amax(-1, keepdim=True) / 127
    values = (rows.float() / scales).round().to(torch.int8)
    return torch.cat((values, scales.view(torch.int8)), dim=-1)


def numbers(pool: Tensor) -> Tensor:
    """The reverse of `quantized`; float pools in float32."""
    if pool.dtype != torch.int8:
        return pool.float()
    scales = pool[..., -4:].contiguous().view(torch.float32)
    return pool[..., :-4].float() * scales


def batch(
    heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, kv: torch.dtype
) -> tuple[Tensor, Pools, list[Tensor]]:
    """Queries of one row per entry of LAST, pools, and scattered block tables."""
    num_blocks = sum(last // BLOCK_SIZE + 1 for last in LAST)
    shape = (num_blocks, BLOCK_SIZE, heads[1])
    pools = [torch.randn(*shape, dim) for dim in dims]
    pools = [quantized(pool) if kv == torch.int8 else pool.to(kv) for pool in pools]
    order = torch.randperm(num_blocks)
    tables = list(torch.split(order, [last // BLOCK_SIZE + 1 for last in LAST]))
    return torch.randn(len(LAST), heads[0], dims[0]).to(dtype), Pools(*pools), tables


def seen(pool: Tensor, table: Tensor, last: int, window: int | None) -> Tensor:
    begin = max(0, last + 1 - window) if window else 0
    return numbers(pool[table]).flatten(0, 1)[begin : last + 1]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kv", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("heads, dims", SHAPES)
@pytest.mark.parametrize("window, softcap", [(None, None), (20, None), (300, 5.0)])
def test_rows_of_many_lengths(  # type: ignore[no-untyped-def]
    helper: ctypes.CDLL, dtype, kv, heads, dims, window, softcap
) -> None:
    q, pools, tables = batch(heads, dims, dtype, kv)
    assert native.can_attend(dtype, pools)
    rows = native.rows(LAST, tables)
    found = native.attend(q, pools, rows, scale=0.2, window=window, softcap=softcap, helper=helper)
    assert found.dtype == dtype
    for number, last in enumerate(LAST):
        k, v = (seen(pool, tables[number], last, window) for pool in pools)
        wanted = plain(q[number].float(), k, v, 0.2, softcap)
        atol = TOLERANCE[dtype] * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found[number].float(), wanted, rtol=0, atol=atol)


def test_a_neighbours_nan_stays_there(helper: ctypes.CDLL) -> None:
    q, pools, tables = batch((4, 2), (64, 64), torch.float32, torch.float32)
    rows = native.rows(LAST, tables)
    arguments = {"scale": 0.1, "window": None, "softcap": None, "helper": helper}
    wanted = native.attend(q, pools, rows, **arguments)  # type: ignore[arg-type]
    pools.keys[tables[3]] = torch.nan
    pools.values[tables[5][-1], 1:] = torch.nan  # 256 sees only the first slot of its last block
    found = native.attend(q, pools, rows, **arguments)  # type: ignore[arg-type]
    assert found[3].isnan().all()
    rest = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[rest], wanted[rest])


def test_large_scores_do_not_overflow(helper: ctypes.CDLL) -> None:
    q, pools, tables = batch((2, 2), (32, 32), torch.float32, torch.float32)
    rows = native.rows(LAST, tables)
    found = native.attend(q * 1e4, pools, rows, scale=1.0, window=None, softcap=None, helper=helper)
    assert found.isfinite().all()
    k, v = (seen(pool, tables[-1], LAST[-1], None) for pool in pools)
    torch.testing.assert_close(found[-1], plain(q[-1] * 1e4, k, v, 1.0, None))


def test_no_rows_give_no_rows(helper: ctypes.CDLL) -> None:
    q, pools, _ = batch((2, 2), (32, 32), torch.float32, torch.float32)
    rows = native.rows([], [])
    found = native.attend(q[:0], pools, rows, scale=1.0, window=None, softcap=None, helper=helper)
    assert found.shape == (0, 2, 32)


@pytest.mark.parametrize("dims", [(8, 8), (272, 272), (64, 0), (24, 24)])
def test_what_it_has_no_code_for_is_said(dims: tuple[int, int]) -> None:
    pools = Pools(*(torch.zeros(1, BLOCK_SIZE, 1, dim) for dim in dims))
    assert not native.can_attend(torch.float32, pools)
    assert not native.can_attend(torch.float16, pools)
