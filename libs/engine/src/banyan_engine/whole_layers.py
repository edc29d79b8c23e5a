"""Decode steps in the compiled helper: one call for all layers and the head.

With one row and a small model a step is hundreds of short operations, and starting them from
Python costs a third of it. The helper does the same operations on the same numbers, so the way
through `Model` judges this one to the bit. It serves what most steps of a decode worker are: one
sampled token of each sequence, no adapters, bfloat16 activations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from banyan_engine.kernels import grouped, native
from banyan_engine.linear import Dense, Int4, Int8, Weight
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.rowwise import LANES
from banyan_engine.spans import Span
from banyan_engine.step_inputs import FilledInputs
from banyan_engine.weights import LayerWeights

PARTS = ("products", "norms, rotations, gates, KV", "attention", "experts", "head")
"""Of a step, as in clock.h."""
PartSeconds = ctypes.c_double * len(PARTS)


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
        *((name, ctypes.c_void_p) for name in ("experts", *_NORMS, "keys", "values")),
        *((name, ctypes.c_int64) for name in ("block_size", "heads", "kv_heads", "dim")),
        *((name, ctypes.c_int64) for name in ("turning", "window", "rope")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "eps")),
        *((name, ctypes.c_int) for name in ("is_silu", "is_int8")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("head", _Matrix),
        *((name, ctypes.c_void_p) for name in ("norm", "embedding", "cos", "sin", "tables")),
        *((name, ctypes.c_void_p) for name in ("token_ids", "positions", "slots", "fresh_blocks")),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in ("normed", "qkv", "attended", "made", "both")),
        *((name, ctypes.c_void_p) for name in ("inner", "logits", "seconds")),
        *((name, ctypes.c_int64) for name in ("rows", "num_fresh", "num_layers")),
        ("embedding_scale", ctypes.c_float),
        ("threads", ctypes.c_int),
    )


class WholeLayers:
    """A model over one pool, as the helper reads them; the pool must outlive it.

    `seconds`, where there are some, are added to by what the parts of a step take.
    """

    def __init__(self, model: Model, kv: PagedKv) -> None:
        self.model = model
        self.seconds: ctypes.Array[ctypes.c_double] | None = None
        made = [_layer(model, kv, number) for number in range(model.spec.num_layers)]
        self._layers = (_Layer * len(made))(*(layer for layer, _ in made))
        self._kept = [experts for _, experts in made]
        self._head = _matrix(model.head, None)
        inner = max(layer.gate_up.num_out for layer in self._layers)
        first, hidden = self._layers[0], model.spec.hidden_size
        sizes = (hidden, hidden, first.qkv.num_out, first.output.num_in, hidden, inner, inner // 2)
        rooms = [torch.empty(native.MAX_ROWS, size, dtype=model.dtype) for size in sizes]
        self._rooms = rooms  # memory that stays, for what is between operations

    def logits(self, inputs: FilledInputs, spans: Sequence[Span], helper: ctypes.CDLL) -> Tensor:
        """[tokens, vocab], before any soft cap, of one token of each span; K and V are written."""
        model, num_rows = self.model, len(spans)
        logits = torch.empty(num_rows, self._head.num_out, dtype=model.dtype)
        rotations = model.all_rotations(max(span.end for span in spans))
        read = (
            _addresses([by.cos for by in rotations]),
            _addresses([by.sin for by in rotations]),
            _addresses([span.block_table for span in spans]),
        )
        step = _Step(
            self._head,
            model.norm.data_ptr(),
            model.embedding.data_ptr(),
            *map(ctypes.addressof, read),
            *(each.data_ptr() for each in inputs[:4]),
            *(each.data_ptr() for each in self._rooms),
            logits.data_ptr(),
            None if self.seconds is None else ctypes.addressof(self.seconds),
            num_rows,
            inputs.fresh_block_ids.shape[0],
            len(self._layers),
            model.embedding_scale,
            torch.get_num_threads(),
        )
        helper.banyan_layers(self._layers, ctypes.byref(step))
        return logits


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
    if not (spec.num_layers and _is_read_in_place(model.head)):
        return False
    lengths = [spec.hidden_size, spec.head_dim, *(rope.num_dims // 2 for rope in spec.ropes)]
    if model.dtype != torch.bfloat16 or any(length % LANES for length in lengths):
        return False
    return all(
        kv.pools(number).keys.dtype in (torch.bfloat16, torch.int8)
        and native.can_attend(model.dtype, kv.pools(number))
        and _is_whole(model.layer(number))
        for number in range(spec.num_layers)
    )


def _is_whole(weights: LayerWeights) -> bool:
    matrices = [weights.qkv, weights.output]
    if weights.mlp is not None:
        matrices += [weights.mlp.gate_up, weights.mlp.down]
    elif weights.experts is None or weights.experts.grouped is None:
        return False
    return all(map(_is_read_in_place, matrices))


def _is_read_in_place(weight: Weight) -> bool:
    if weight.shape[1] % native.STEP:
        return False
    if isinstance(weight, Dense):
        return weight.matrix.dtype == torch.bfloat16 and weight.matrix.is_contiguous()
    return not isinstance(weight, Int4) or weight.offsets is None


def _layer(model: Model, kv: PagedKv, number: int) -> tuple[_Layer, ctypes.Structure | None]:
    """With what it holds the address of."""
    spec, weights, pools = model.spec, model.layer(number), kv.pools(number)
    experts, none = None, _Matrix(None, None, None, 0, 0, native.DENSE)
    mlp = (none, none)
    shape = spec.layers[number].experts
    if weights.mlp is not None:
        gate_up_bias, down_bias = weights.mlp.gate_up_bias, weights.mlp.down_bias
        mlp = _matrix(weights.mlp.gate_up, gate_up_bias), _matrix(weights.mlp.down, down_bias)
    elif shape is not None and weights.experts is not None and weights.experts.grouped is not None:
        experts = grouped.arguments(
            weights.experts.grouped, shape.num_chosen, shape.renormalise, spec.activation
        )
    layer = _Layer(
        _matrix(weights.qkv, weights.qkv_bias),
        _matrix(weights.output, weights.output_bias),
        *mlp,
        None if experts is None else ctypes.addressof(experts),
        *(_address(getattr(weights, name)) for name in _NORMS),
        *(pool.data_ptr() for pool in pools),
        kv.block_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.ropes[spec.layers[number].rope].num_dims,
        kv.layout.layers[number].window or 0,
        spec.layers[number].rope,
        spec.attention_scale,
        spec.attention_soft_cap or 0.0,
        spec.rms_norm_eps,
        spec.activation == "silu",
        pools.is_int8,
    )
    return layer, experts


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


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))
