"""Every level of CPU instructions that this machine has gives the same numbers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from banyan_engine.kernels import native
from banyan_engine.kernels.build import LEVELS, binary_name, cache_folder, compile_level, cpu_level
from banyan_engine.kernels.native import Pools
from banyan_engine.linear import dense, linear_helped, linear_torch, quantize_int4, quantize_int8

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
@pytest.mark.parametrize("num_rows", [1, 2, 4, 7])
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
