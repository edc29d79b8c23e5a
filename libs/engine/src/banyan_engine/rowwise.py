"""What lies between a layer's products: norms, gates, rotary embeddings, the way of K and V to
their slots.

Each is half a dozen torch operations. With one row an operation costs what it takes to start it,
in caches that the weights have just swept; the compiled helper does each in one call. It takes
bfloat16 only, so that deterministic mode, which is float32, never meets it.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.kernels import native
from banyan_engine.rope import Rotation, rotate

LANES = 16
"""Lengths must be multiples of it for the helper."""


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension."""
    helper = _helper(x, x.shape[-1])
    if helper is None:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _norm(helper, x, None, weight, eps)[1]


def add_norm(x: Tensor, made: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + made, and the norm of it."""
    helper = _helper(x, x.shape[-1])
    if helper is None:
        x = x + made
        return x, F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _norm(helper, x, made, weight, eps)


def gate(both: Tensor, activation: str) -> Tensor:
    """[rows, 2 n] to [rows, n]: the activation of the left half times the right half."""
    num_inner = both.shape[-1] // 2
    helper = _helper(both, num_inner)
    if helper is None:
        left, right = both.chunk(2, dim=-1)
        return (F.silu(left) if activation == "silu" else F.gelu(left, approximate="tanh")) * right
    y = both.new_empty(len(both), num_inner)
    helper.banyan_gate(
        _address(both.contiguous()),
        _address(y),
        ctypes.c_int64(len(both)),
        ctypes.c_int64(num_inner),
        activation == "silu",
        torch.get_num_threads(),
    )
    return y


def split_heads(
    qkv: Tensor,
    num_heads: tuple[int, int],
    by: Rotation,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v out of [tokens, heads of all three, head_dim], q and k normed and turned.

    `num_heads` are those of q and of k. What is given may be changed.
    """
    num_q, num_k = num_heads
    head_dim, num_turning = qkv.shape[-1], by.cos.shape[-1]
    helper = _helper(qkv, head_dim, num_turning // 2) if qkv.is_contiguous() else None
    q, k, v = qkv.tensor_split((num_q, num_q + num_k), dim=1)
    if helper is None:
        if norms is not None:
            q, k = (F.rms_norm(x, (head_dim,), w, eps) for x, w in zip((q, k), norms, strict=True))
        return rotate(q, by), rotate(k, by), v
    helper.banyan_rotate(
        _address(qkv),
        _address(by.cos),
        _address(by.sin),
        ctypes.c_int64(len(qkv)),
        ctypes.c_int64(qkv.stride(0)),
        ctypes.c_int64(num_q + num_k),
        ctypes.c_int64(head_dim),
        ctypes.c_int64(num_turning),
        _address(None if norms is None else norms[0]),
        _address(None if norms is None else norms[1]),
        ctypes.c_int64(num_q),
        ctypes.c_float(eps),
        torch.get_num_threads(),
    )
    return q, k, v


def keep(x: Tensor, pool: Tensor, slot_ids: Tensor) -> bool:
    """Write x [tokens, heads, dim] into the slots of a pool; False when it must go another way."""
    helper = _helper(x, x.shape[-1])
    if helper is None or pool.dtype not in (torch.bfloat16, torch.int8):
        return False
    if x.stride()[1:] != (x.shape[-1], 1):
        x = x.contiguous()
    helper.banyan_keep(
        _address(x),
        _address(pool),
        _address(slot_ids),
        pool.dtype == torch.int8,
        ctypes.c_int64(len(x)),
        ctypes.c_int64(x.stride(0)),
        ctypes.c_int64(x.shape[1]),
        ctypes.c_int64(x.shape[2]),
        torch.get_num_threads(),
    )
    return True


def _helper(x: Tensor, *lengths: int) -> ctypes.CDLL | None:
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return None
    if any(length == 0 or length % LANES for length in lengths):
        return None
    return native.library()


def _norm(
    helper: ctypes.CDLL, x: Tensor, made: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    made = None if made is None else made.contiguous()
    total, y = x if made is None else torch.empty_like(x), torch.empty_like(x)
    helper.banyan_norm(
        _address(x),
        _address(made),
        _address(weight),
        _address(total),
        _address(y),
        ctypes.c_int64(x.numel() // x.shape[-1]),
        ctypes.c_int64(x.shape[-1]),
        ctypes.c_float(eps),
        torch.get_num_threads(),
    )
    return total, y


def _address(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())
