"""Products with weights behind one call, whatever format a weight is stored in.

The model says `linear(x, weight)` and does not know how the weight lies in memory; the loader
decides that once. All formats are made from the file's own orientation, [out, in], and keep it.
Few rows go to the compiled helper where it is there; many rows, where multiplying dominates, are
unpacked some channels at a time and go to torch.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.kernels import native

TILE_ROWS = 512
"""Output channels of a packed weight that are unpacked at a time: they stay in the cache."""
FEW_ROWS = 8
"""Rows of x up to which torch multiplies int8 as it is faster than unpacked."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A weight in its computing type. `matrix` is [out, in] by shape, its memory may be either."""

    matrix: Tensor

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.matrix.shape

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads of it."""
        return self.matrix.nbytes

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some output channels as numbers, [channels, in]."""
        return self.matrix[rows].to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """Bytes [out, in padded to 32] and one float32 scale per output channel."""

    shape: torch.Size
    packed: Tensor
    scales: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads of it."""
        return self.packed.nbytes + self.scales.nbytes

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some output channels as numbers, [channels, in]."""
        values = self.packed[rows, : self.shape[1]] * self.scales[rows, None]
        return values.to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Int4:
    """Nibbles in groups of 32 input channels, each with a bfloat16 scale.

    `packed` is uint8 [out, groups, 16]: byte j has channel j in its low half, j + 16 in its high
    one, both plus 8. `scales` is [out, groups]. `offsets` are added to the weights, float32 [out,
    groups of any one size]: a checkpoint's zero points, times their scales.
    """

    shape: torch.Size
    packed: Tensor
    scales: Tensor
    offsets: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads of it."""
        offsets = 0 if self.offsets is None else self.offsets.nbytes
        return self.packed.nbytes + self.scales.nbytes + offsets

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some output channels as numbers, [channels, in]."""
        packed = self.packed[rows]
        half = packed.shape[-1]
        values = packed.new_empty(*packed.shape[:2], 2 * half, dtype=dtype)
        values[..., :half] = packed & 15
        values[..., half:] = packed >> 4
        values.sub_(8).mul_(self.scales[rows, :, None])
        values = values.flatten(1)[:, : self.shape[1]]
        if self.offsets is None:
            return values
        offsets = self.offsets[rows, :, None]
        grouped = values.reshape(len(values), offsets.shape[1], -1) + offsets
        return grouped.flatten(1).to(dtype)


Weight = Dense | Int8 | Int4


def dense(matrix: Tensor) -> Dense:
    """The weight [out, in] laid out for speed, in fresh memory.

    float32 lies transposed: products with few rows are up to twice as fast so.
    """
    if matrix.dtype == torch.float32:
        return Dense(matrix.t().contiguous().t())
    return Dense(matrix.contiguous())


def quantize_int8(matrix: Tensor) -> Int8:
    """Each output channel scaled so that its largest weight is 127."""
    values = _padded(matrix)
    scales = (values.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    packed = (values / scales[:, None]).round_().to(torch.int8)
    return Int8(matrix.shape, packed, scales)


def quantize_int4(matrix: Tensor) -> Int4:
    """Each group scaled so that its largest weight, with its sign, is -8."""
    groups = _padded(matrix).view(matrix.shape[0], -1, native.STEP)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scales = (largest / -8).to(torch.bfloat16)
    divisors = scales.to(torch.float32)
    nibbles = torch.where(divisors == 0, 0.0, groups / divisors).round_().clamp_(-8, 7) + 8
    low, high = nibbles.to(torch.uint8).chunk(2, dim=2)
    return Int4(matrix.shape, low | (high << 4), scales.squeeze(2))


def _padded(matrix: Tensor) -> Tensor:
    return F.pad(matrix.to(torch.float32), (0, -matrix.shape[1] % native.STEP))


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] to [rows, out], in the type of x."""
    helper = native.library() if _is_helped(x, weight) else None
    if helper is None:
        return linear_torch(x, weight, bias)
    if isinstance(weight, Int4) and weight.offsets is not None:
        return _with_offsets(x, weight, weight.offsets, bias, helper)
    return linear_helped(x, weight, bias, helper)


def _with_offsets(
    x: Tensor, weight: Int4, offsets: Tensor, bias: Tensor | None, helper: ctypes.CDLL
) -> Tensor:
    """An offset counts once for its whole group of x. In float32: the two parts may cancel."""
    wide = x.to(torch.float32)
    sums = wide.reshape(len(x), offsets.shape[1], -1).sum(2)
    y = linear_helped(wide, weight, None, helper).addmm_(sums, offsets.t())
    return (y if bias is None else y + bias).to(x.dtype)


def _is_helped(x: Tensor, weight: Weight) -> bool:
    """float32 weights stay with torch: so does deterministic mode, whose bits must not change."""
    max_rows = native.MAX_ROWS if x.dtype == torch.bfloat16 else native.MAX_FLOAT_ROWS
    if x.device.type != "cpu" or not 0 < len(x) <= max_rows:
        return False
    if not isinstance(weight, Dense):
        return x.dtype in (torch.bfloat16, torch.float32)
    matrix = weight.matrix
    return (
        x.dtype == matrix.dtype == torch.bfloat16
        and matrix.is_contiguous()
        and matrix.shape[1] % native.STEP == 0
    )


def linear_helped(x: Tensor, weight: Weight, bias: Tensor | None, helper: ctypes.CDLL) -> Tensor:
    """By the compiled helper; dense weights are contiguous there, `in` a multiple of 32."""
    num_out = weight.shape[0]
    if isinstance(weight, Dense):
        return native.product(
            x, weight.matrix, None, bias, format=native.DENSE, num_out=num_out, helper=helper
        )
    if padding := -x.shape[1] % native.STEP:
        x = F.pad(x, (0, padding))
    kind = native.INT8 if isinstance(weight, Int8) else native.INT4
    return native.product(
        x, weight.packed, weight.scales, bias, format=kind, num_out=num_out, helper=helper
    )


def linear_torch(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """By torch alone."""
    if isinstance(weight, Dense):
        return F.linear(x, weight.matrix, bias)
    if isinstance(weight, Int8):
        y = _int8_torch(x, weight)
    else:
        tiles = (weight.unpack(rows, x.dtype) for rows in _tiles(weight))
        y = torch.cat([F.linear(x, tile) for tile in tiles], dim=1)
    return y if bias is None else y + bias


def _int8_torch(x: Tensor, weight: Int8) -> Tensor:
    """Bytes are exact in every type; an output channel's scale is applied to the sum."""
    if padding := -x.shape[1] % native.STEP:
        x = F.pad(x, (0, padding))
    if x.is_cpu and x.dtype == torch.bfloat16 and 0 < len(x) <= FEW_ROWS:
        return torch._weight_int8pack_mm(x.contiguous(), weight.packed, weight.scales.to(x.dtype))
    tiles = (weight.packed[rows].to(x.dtype) for rows in _tiles(weight))
    return (torch.cat([F.linear(x, tile) for tile in tiles], dim=1) * weight.scales).to(x.dtype)


def _tiles(weight: Weight) -> list[slice]:
    return [slice(i, i + TILE_ROWS) for i in range(0, weight.shape[0], TILE_ROWS)]
