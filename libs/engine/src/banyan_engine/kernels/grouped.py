"""A mixture of experts in the compiled helper: one call for all experts of a layer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from banyan_engine.kernels.native import STEP


class Experts(NamedTuple):
    """Where a layer's weights lie. `gate_ups` and `downs` are addresses, int64 [experts].

    Each expert has a gate_up [2 inner, hidden] and a down [hidden, inner]; `router` is [experts,
    hidden]. `shared` has the same two of an expert of all rows, and its gate [1, hidden].
    """

    router: Tensor
    gate_ups: Tensor
    downs: Tensor
    inner: int
    shared: tuple[Tensor, Tensor, Tensor] | None


def experts(
    router: Tensor,
    matrices: Sequence[tuple[Tensor, Tensor]],
    shared: tuple[Tensor, Tensor, Tensor] | None,
) -> Experts | None:
    """None where the helper has no code for them. The matrices must stay where they are."""
    pairs = [*matrices, *([] if shared is None else [shared[:2]])]
    gates = [router, *([] if shared is None else [shared[2]])]
    if not all(_fits(each) for each in (*gates, *(one for pair in pairs for one in pair))):
        return None
    gate_ups, downs = (
        torch.tensor([each.data_ptr() for each in column], dtype=torch.int64)
        for column in zip(*matrices, strict=True)
    )
    return Experts(router, gate_ups, downs, matrices[0][1].shape[1], shared)


def _fits(matrix: Tensor) -> bool:
    on_cpu = matrix.device.type == "cpu" and matrix.is_contiguous()
    return on_cpu and matrix.dtype == torch.bfloat16 and matrix.shape[1] % STEP == 0


class _ExpertsArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "router", "gate_ups", "downs")),
        *((name, ctypes.c_void_p) for name in ("shared_gate_up", "shared_down", "shared_gate")),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "hidden", "experts", "chosen", "inner")),
        ("shared_inner", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("renormalise", "is_silu", "threads")),
    )


def mixture(
    x: Tensor,
    weights: Experts,
    *,
    num_chosen: int,
    renormalise: bool,
    activation: str,
    helper: ctypes.CDLL,
) -> Tensor:
    """x [rows, hidden], bfloat16, through the experts that each row chooses, to the same shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if not len(x):
        return out
    args = arguments(weights, num_chosen, renormalise, activation)
    args.x, args.out, args.rows = x.data_ptr(), out.data_ptr(), len(x)
    args.threads = torch.get_num_threads()
    helper.banyan_experts(ctypes.byref(args))
    return out


def arguments(
    weights: Experts, num_chosen: int, renormalise: bool, activation: str
) -> _ExpertsArgs:
    """Of the helper's call, without those of a step: x, out, rows and threads."""
    shared = weights.shared
    return _ExpertsArgs(
        None,
        *(each.data_ptr() for each in (weights.router, weights.gate_ups, weights.downs)),
        *((None, None, None) if shared is None else (each.data_ptr() for each in shared)),
        None,
        0,
        weights.router.shape[1],
        len(weights.gate_ups),
        num_chosen,
        weights.inner,
        0 if shared is None else shared[1].shape[1],
        renormalise,
        activation == "silu",
        0,
    )
