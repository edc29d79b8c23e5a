"""Attention of chunks in the compiled helper: many tokens of one sequence over its blocks."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from banyan_engine.kernels.native import Pools

_DIM_STEP = 16
_KV_TYPES = (torch.bfloat16, torch.int8)


def can_attend(q_type: torch.dtype, pools: Pools) -> bool:
    """Whether the helper has code for queries of this type over these pools."""
    fits = all(dim > 0 and dim % _DIM_STEP == 0 for dim in pools.dims)
    return fits and q_type == torch.bfloat16 and pools.keys.dtype in _KV_TYPES


class _ChunkArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "out", "table")),
        *((name, ctypes.c_int64) for name in ("tokens", "start", "q_stride", "heads")),
        *((name, ctypes.c_int64) for name in ("kv_heads", "key_dim", "value_dim")),
        *((name, ctypes.c_int64) for name in ("block_size", "window")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


def attend(
    q: Tensor,
    pools: Pools,
    start: int,
    block_table: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    helper: ctypes.CDLL,
) -> None:
    """Attention of q [tokens, heads, key_dim] into `out` [tokens, heads, value_dim], contiguous.

    The tokens are at positions `start`, `start` + 1, ... of a sequence whose K and V are in the
    blocks of `block_table`, int64, theirs too. See `can_attend`.
    """
    if q.stride()[1:] != (q.shape[-1], 1):
        q = q.contiguous()
    key_dim, value_dim = pools.dims
    args = _ChunkArgs(
        *(each.data_ptr() for each in (q, *pools, out, block_table)),
        len(q),
        start,
        q.stride(0),
        q.shape[1],
        pools.keys.shape[2],
        key_dim,
        value_dim,
        pools.keys.shape[1],
        window or 0,
        scale,
        softcap or 0.0,
        torch.get_num_threads(),
    )
    helper.banyan_attend_chunk(pools.is_int8, ctypes.byref(args))
