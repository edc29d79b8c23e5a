"""Products with weights behind one call, whatever format a weight is stored in.

The model says `linear(x, weight)` and does not know how the weight lies in memory; the loader
decides that once. All formats are made from the file's own orientation, [out, in].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


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
        return self.matrix.numel() * self.matrix.element_size()


Weight = Dense


def dense(matrix: Tensor) -> Dense:
    """The weight [out, in] laid out for speed, in fresh memory.

    float32 lies transposed: products with few rows are up to twice as fast so.
    """
    if matrix.dtype == torch.float32:
        return Dense(matrix.t().contiguous().t())
    return Dense(matrix.contiguous())


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] to [rows, out], in the type of x."""
    return F.linear(x, weight.matrix, bias)
