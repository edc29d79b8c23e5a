"""Decode steps layer by layer in the compiled helper: one call for all that a layer does.

With one row and a small model a step is hundreds of short operations, and starting them from
Python costs a tenth of it. The helper does the same operations on the same numbers, so the way
through `Model` judges this one to the bit. It serves what most steps of a decode worker are: one
sampled token of each sequence, no adapters, no experts, bfloat16 activations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from banyan_engine.kernels import native
from banyan_engine.linear import Dense, Int8, Weight
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv, Slots
from banyan_engine.rope import Rotation
from banyan_engine.rowwise import LANES
from banyan_engine.spans import Span
from banyan_engine.weights import LayerWeights


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("num_in", "num_out")),
        ("format", ctypes.c_int),
    )


_NORMS = ("attention_norm", "q_norm", "k_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in (*_NORMS, "keys", "values")),
        *((name, ctypes.c_int64) for name in ("block_size", "heads", "kv_heads", "dim")),
        *((name, ctypes.c_int64) for name in ("turning", "window")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "eps")),
        *((name, ctypes.c_int) for name in ("is_silu", "is_int8")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "cos", "sin", "slots", "fresh_blocks")),
        *((name, ctypes.c_void_p) for name in ("tables", "positions", "normed", "qkv")),
        *((name, ctypes.c_void_p) for name in ("attended", "made", "both", "inner")),
        *((name, ctypes.c_int64) for name in ("rows", "num_fresh")),
        ("threads", ctypes.c_int),
    )


class WholeLayers:
    """A model's layers over one pool, as the helper reads them; the pool must outlive it."""

    def __init__(self, model: Model, kv: PagedKv) -> None:
        self.model = model
        self._layers = [_layer(model, kv, number) for number in range(model.spec.num_layers)]

    def step(
        self, x: Tensor, spans: Sequence[Span], slots: Slots, rotations: Sequence[Rotation]
    ) -> WholeStep:
        """x [tokens, hidden], one token of each span; it becomes each layer's output in turn."""
        layers, spec = self._layers, self.model.spec
        rows = native.rows([span.start for span in spans], [span.block_table for span in spans])
        inner = max(layer.gate_up.num_out for layer in layers)
        qkv, attended = layers[0].qkv.num_out, layers[0].output.num_in
        sizes = (spec.hidden_size, qkv, attended, spec.hidden_size, inner, inner // 2)
        buffers = [x.new_empty(len(x), size) for size in sizes]
        steps = [
            _Step(
                *(each.data_ptr() for each in (x, by.cos, by.sin, slots.slot_ids)),
                *(each.data_ptr() for each in (slots.fresh_block_ids, rows.tables, rows.positions)),
                *(each.data_ptr() for each in buffers),
                len(x),
                len(slots.fresh_block_ids),
                torch.get_num_threads(),
            )
            for by in rotations
        ]
        by_layer = [
            (layer, steps[each.rope]) for layer, each in zip(layers, spec.layers, strict=True)
        ]
        return WholeStep(by_layer, (x, slots, rotations, rows, buffers))


class WholeStep:
    """One step's rows on their way through the layers, with what the helper reads meanwhile."""

    def __init__(self, by_layer: Sequence[tuple[_Layer, _Step]], kept: object) -> None:
        self._by_layer = by_layer
        self._kept = kept

    def run(self, layer: int, helper: ctypes.CDLL) -> None:
        """Compute one layer, K and V written."""
        weights, step = self._by_layer[layer]
        helper.banyan_layer(ctypes.byref(weights), ctypes.byref(step))


_made: WeakKeyDictionary[PagedKv, WholeLayers | None] = WeakKeyDictionary()


def whole_layers(model: Model, kv: PagedKv, spans: Sequence[Span]) -> WholeLayers | None:
    """For these spans; None where they, the model or the pool need the other way."""
    if len(spans) > native.MAX_ROWS or kv.device.type != "cpu":
        return None
    if any(s.num_tokens != 1 or s.num_sampled != 1 or s.adapter is not None for s in spans):
        return None
    found = _made.get(kv)
    if kv not in _made or (found is not None and found.model is not model):
        found = WholeLayers(model, kv) if _has_code(model, kv) else None
        _made[kv] = found
    return found


def _has_code(model: Model, kv: PagedKv) -> bool:
    spec = model.spec
    lengths = [spec.hidden_size, spec.head_dim, *(rope.num_dims // 2 for rope in spec.ropes)]
    if model.dtype != torch.bfloat16 or any(length % LANES for length in lengths):
        return False
    return all(
        kv.pools(number).keys.dtype in (torch.bfloat16, torch.int8)
        and native.can_attend(model.dtype, kv.pools(number))
        and all(map(_is_read_in_place, _matrices(model.layer(number))))
        for number in range(spec.num_layers)
    )


def _matrices(weights: LayerWeights) -> list[Weight | None]:
    if weights.mlp is None:
        return [None]
    return [weights.qkv, weights.output, weights.mlp.gate_up, weights.mlp.down]


def _is_read_in_place(weight: Weight | None) -> bool:
    if weight is None or weight.shape[1] % native.STEP:
        return False
    return not isinstance(weight, Dense) or weight.matrix.is_contiguous()


def _layer(model: Model, kv: PagedKv, number: int) -> _Layer:
    spec, weights, pools = model.spec, model.layer(number), kv.pools(number)
    assert weights.mlp is not None
    return _Layer(
        _matrix(weights.qkv, weights.qkv_bias),
        _matrix(weights.output, weights.output_bias),
        _matrix(weights.mlp.gate_up, weights.mlp.gate_up_bias),
        _matrix(weights.mlp.down, weights.mlp.down_bias),
        *(_address(getattr(weights, name)) for name in _NORMS),
        *(pool.data_ptr() for pool in pools),
        kv.block_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.ropes[spec.layers[number].rope].num_dims,
        kv.layout.layers[number].window or 0,
        spec.attention_scale,
        spec.attention_soft_cap or 0.0,
        spec.rms_norm_eps,
        spec.activation == "silu",
        pools.is_int8,
    )


def _matrix(weight: Weight, bias: Tensor | None) -> _Matrix:
    num_out, num_in = weight.shape
    if isinstance(weight, Dense):
        return _Matrix(
            weight.matrix.data_ptr(), None, _address(bias), num_in, num_out, native.DENSE
        )
    kind = native.INT8 if isinstance(weight, Int8) else native.INT4
    packed, scales = weight.packed.data_ptr(), weight.scales.data_ptr()
    return _Matrix(packed, scales, _address(bias), num_in, num_out, kind)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
