"""Calls into the compiled helper, with tensors.

Whoever calls has asked `library` for it, and goes another way where it is absent or has no code
for the case.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from banyan_engine.kernels.build import Loader

STEP = 32
"""Channels that the products take at a time: rows are padded to a multiple of it."""
MAX_ROWS = 64
"""Rows of x up to which the helper's product is faster than unpacking and torch's."""
MAX_FLOAT_ROWS = 32
"""The same for x in float32."""
_DIM_STEP, _MAX_DIM = 16, 256
_TYPES = (torch.bfloat16, torch.float32)
KV_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
DENSE, INT8, INT4 = range(3)

loader = Loader()


def library() -> ctypes.CDLL | None:
    """The helper, or None while it is not there. The first call begins to get it."""
    if loader.library is None and loader.status == "not asked for":
        loader.start()
    return loader.library


def product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    *,
    format: int,
    num_out: int,
    helper: ctypes.CDLL,
) -> Tensor:
    """x [rows, in] times a weight [out, in] of the named format; `in` is a multiple of STEP."""
    x = x.contiguous()
    y = x.new_empty(len(x), num_out)
    helper.banyan_product(
        x.dtype is torch.bfloat16,
        format,
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(weight.data_ptr()),
        ctypes.c_void_p(None if scales is None else scales.data_ptr()),
        ctypes.c_void_p(None if bias is None else bias.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_int64(len(x)),
        ctypes.c_int64(x.shape[1]),
        ctypes.c_int64(num_out),
        torch.get_num_threads(),
    )
    return y


class Pools(NamedTuple):
    """K and V of a layer, each [blocks, block_size, kv_heads, dim].

    int8 rows are 4 bytes longer than dim: behind its bytes stands a row's float32 scale.
    """

    keys: Tensor
    values: Tensor

    @property
    def is_int8(self) -> bool:
        """Whether rows are bytes with a scale."""
        return self.keys.dtype == torch.int8

    @property
    def dims(self) -> tuple[int, int]:
        """Channels of a key and of a value."""
        extra = 4 if self.is_int8 else 0
        return self.keys.shape[-1] - extra, self.values.shape[-1] - extra


class Rows(NamedTuple):
    """Single query rows: the last position that each sees, and its block table."""

    positions: Tensor
    tables: Tensor
    block_tables: Sequence[Tensor]


def rows(last_positions: Sequence[int], block_tables: Sequence[Tensor]) -> Rows:
    """Tables are int64 and contiguous; they are kept, because the helper reads them in place."""
    addresses = torch.tensor([table.data_ptr() for table in block_tables], dtype=torch.int64)
    positions = torch.tensor(last_positions, dtype=torch.int64)
    return Rows(positions, addresses, block_tables)


def can_attend(q_type: torch.dtype, pools: Pools) -> bool:
    """Whether the helper has code for queries of this type over these pools."""
    fits = all(dim > 0 and dim % _DIM_STEP == 0 and dim <= _MAX_DIM for dim in pools.dims)
    return fits and q_type in _TYPES and pools.keys.dtype in KV_TYPES


class _AttendArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values")),
        *((name, ctypes.c_void_p) for name in ("out", "tables", "positions")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "key_dim")),
        *((name, ctypes.c_int64) for name in ("value_dim", "block_size", "window", "q_stride")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


def attend(
    q: Tensor,
    pools: Pools,
    rows: Rows,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    helper: ctypes.CDLL,
) -> Tensor:
    """Attention of q [rows, heads, key_dim] to [rows, heads, value_dim]; see `can_attend`."""
    kv_type, q_type = pools.keys.dtype, q.dtype
    q = q.to(torch.float32 if kv_type == torch.float32 else q_type)
    if q.stride()[1:] != (q.shape[2], 1):
        q = q.contiguous()
    key_dim, value_dim = pools.dims
    out = q.new_empty(*q.shape[:2], value_dim)
    if not len(q):
        return out
    args = _AttendArgs(
        *(each.data_ptr() for each in (q, *pools, out, rows.tables, rows.positions)),
        *q.shape[:2],
        pools.keys.shape[2],
        key_dim,
        value_dim,
        pools.keys.shape[1],
        window or 0,
        q.stride(0),
        scale,
        softcap or 0.0,
        torch.get_num_threads(),
    )
    helper.banyan_attend(q.dtype is torch.bfloat16, KV_TYPES[kv_type], ctypes.byref(args))
    return out.to(q_type)
