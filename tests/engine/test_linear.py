"""Every weight format against plain float32 arithmetic, with the compiled helper and without.

Tolerances are relative to the largest output, or to what is usual where sums cancel: bfloat16 has
8 bits, so a rounded result and rounded unpacked weights are each off by up to 2^-9.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from banyan_engine.linear import (
    Dense,
    Int4,
    Int8,
    Weight,
    dense,
    linear,
    linear_helped,
    linear_torch,
    quantize_int4,
    quantize_int8,
)

TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 2e-5}
SHAPES = [(50, 96), (1, 160), (257, 1024), (33, 47)]
"""More and fewer channels than a block of the kernel has; the last is padded."""


def as_numbers(weight: Weight) -> Tensor:
    """What a weight stands for, in float32."""
    return weight.unpack(slice(None), torch.float32)


def check(found: Tensor, x: Tensor, weight: Weight, bias: Tensor | None = None) -> None:
    wanted = x.float() @ as_numbers(weight).t()
    if bias is not None:
        wanted = wanted + bias.float()
    assert found.dtype == x.dtype
    scale = max(x.shape[1] ** 0.5, float(wanted.abs().max()))
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=TOLERANCE[x.dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [dense, quantize_int8, quantize_int4])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 12, 20, 32, 60, 65])
def test_products(helper: ctypes.CDLL, dtype, shape, make, num_rows: int) -> None:  # type: ignore[no-untyped-def]
    weight = make(torch.randn(shape).to(dtype))
    x = torch.randn(num_rows, shape[1]).to(dtype)
    bias = torch.randn(shape[0]).to(dtype)
    check(linear_torch(x, weight, bias), x, weight, bias)
    check(linear(x, weight), x, weight)
    is_packed = not isinstance(weight, Dense)
    if is_packed or (shape[1] % 32 == 0 and weight.matrix.is_contiguous()):
        check(linear_helped(x, weight, bias, helper), x, weight, bias)


def test_a_row_with_nan_stays_alone(helper: ctypes.CDLL) -> None:
    weight = quantize_int8(torch.randn(40, 64))
    x = torch.randn(5, 64)
    wanted = linear_helped(x, weight, None, helper)
    x[2, 63] = torch.nan
    found = linear_helped(x, weight, None, helper)
    assert found[2].isnan().all()
    rest = [0, 1, 3, 4]
    assert torch.equal(found[rest], wanted[rest])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_infinities_and_large_numbers_round_as_in_torch(
    helper: ctypes.CDLL, dtype: torch.dtype
) -> None:
    weight = Dense(torch.eye(32, dtype=dtype))
    x = torch.zeros(1, 32, dtype=dtype)
    x[0, :3] = torch.tensor([3e38, -3e38, 1e-30], dtype=dtype)
    assert torch.equal(linear_helped(x, weight, None, helper), x)


def test_no_rows_give_no_rows() -> None:
    for make in (dense, quantize_int8, quantize_int4):
        assert linear(torch.empty(0, 32), make(torch.randn(5, 32))).shape == (0, 5)


def test_int8_is_off_by_at_most_half_a_step() -> None:
    matrix = torch.randn(20, 100)
    weight = quantize_int8(matrix)
    assert isinstance(weight, Int8)
    assert weight.num_bytes == 20 * 128 + 20 * 4
    error = (as_numbers(weight) - matrix).abs()
    assert (error <= matrix.abs().amax(1, keepdim=True) / 127 * 0.501).all()


def test_int4_is_off_by_at_most_one_step() -> None:
    matrix = torch.randn(20, 100)
    weight = quantize_int4(matrix)
    assert isinstance(weight, Int4)
    assert weight.num_bytes == 20 * 4 * (16 + 2)
    error = torch.nn.functional.pad((as_numbers(weight) - matrix).abs(), (0, 28)).view(20, 4, 32)
    largest = torch.nn.functional.pad(matrix.abs(), (0, 28)).view(20, 4, 32).amax(2, keepdim=True)
    assert (error <= largest / 8 * 1.01).all()


@pytest.mark.parametrize("make", [quantize_int8, quantize_int4])
def test_zero_weights_stay_zero(make) -> None:  # type: ignore[no-untyped-def]
    assert not as_numbers(make(torch.zeros(4, 64))).any()
