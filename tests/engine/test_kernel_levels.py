"""Every level of CPU instructions that this machine has gives the same numbers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from banyan_core.types import equal_layers
from banyan_engine.attention import attend_dense
from banyan_engine.kernels import chunks, grouped, native
from banyan_engine.kernels.build import LEVELS, binary_name, cache_folder, compile_level, cpu_level
from banyan_engine.kernels.native import Pools
from banyan_engine.linear import dense, linear_helped, linear_torch, quantize_int4, quantize_int8
from banyan_engine.paged_kv import PagedKv

_TYPES = (torch.bfloat16, torch.float32)


@pytest.fixture(scope="module", params=list(LEVELS))
def at_level(helper: ctypes.CDLL, request: pytest.FixtureRequest) -> ctypes.CDLL:
    """A library for each level that this CPU can run."""
    level, best = request.param, cpu_level()
    assert best is not None
    if list(LEVELS).index(level) < list(LEVELS).index(best):
        pytest.skip(f"this CPU has no {level}")
    path: Path = cache_folder() / binary_name(level)
    return ctypes.CDLL(str(path if path.is_file() else compile_level(level, cache_folder())))


@pytest.mark.parametrize(
    "make, dtype",
    [
        (dense, torch.bfloat16),
        *((make, dtype) for make in (quantize_int8, quantize_int4) for dtype in _TYPES),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 2, 4, 7, 23])
def test_products(at_level: ctypes.CDLL, make, dtype, num_rows: int) -> None:  # type: ignore[no-untyped-def]
    weight = make(torch.randn(37, 96).to(torch.bfloat16))
    x = torch.randn(num_rows, 96).to(dtype)
    found, wanted = linear_helped(x, weight, None, at_level), linear_torch(x, weight)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("kv", _TYPES)
def test_attention(at_level: ctypes.CDLL, dtype: torch.dtype, kv: torch.dtype) -> None:
    keys, values = (torch.randn(3, 16, 2, 80).to(kv) for _ in ("keys", "values"))
    q = torch.randn(1, 4, 80).to(dtype)
    rows = native.rows([39], [torch.tensor([0, 1, 2])])
    found = native.attend(
        q, Pools(keys, values), rows, scale=0.1, window=None, softcap=None, helper=at_level
    )
    k, v = (pool.flatten(0, 1)[:40].float().repeat_interleave(2, 1) for pool in (keys, values))
    weights = (torch.einsum("hd,thd->ht", q[0].float(), k) * 0.1).softmax(-1)
    wanted = torch.einsum("ht,thd->hd", weights, v)
    torch.testing.assert_close(found[0].float(), wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kv", [torch.bfloat16, torch.int8])
def test_attention_of_chunks(at_level: ctypes.CDLL, kv: torch.dtype) -> None:
    layout = equal_layers(1, 2, 80, str(kv).removeprefix("torch."))
    pool, table = PagedKv(layout, 13, 16), torch.randperm(13)
    k, v = (torch.randn(200, 2, 80).to(torch.bfloat16) for _ in ("keys", "values"))
    pool.write(0, pool.slots(0, 200, table), k, v)
    q = torch.randn(150, 4, 80).to(torch.bfloat16)
    found = torch.empty_like(q)
    chunks.attend(
        q, pool.pools(0), 50, table, found, scale=0.1, window=90, softcap=None, helper=at_level
    )
    k, v = (rows[:200].float() for rows in pool.gather(0, table))
    wanted = attend_dense(q.float(), k, v, 0.1, 90)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("num_rows", [3, 300])
def test_experts(at_level: ctypes.CDLL, num_rows: int) -> None:
    gate_up, down = (torch.randn(shape).to(torch.bfloat16) / 8 for shape in ((128, 96), (96, 64)))
    router, x = torch.ones(1, 96).to(torch.bfloat16), torch.randn(num_rows, 96).to(torch.bfloat16)
    weights = grouped.experts(router, [(gate_up, down)], None)
    assert weights is not None
    found = grouped.mixture(
        x, weights, num_chosen=1, renormalise=True, activation="silu", helper=at_level
    )
    left, right = (x.float() @ gate_up.float().t()).chunk(2, dim=-1)
    wanted = (torch.nn.functional.silu(left) * right) @ down.float().t()
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))
