"""Tensors of a model folder, as the decoder wants them.

Files are mapped, not read, but each tensor is copied once into fresh memory: the mapping is not
aligned, and the bits of a matrix product may depend on the alignment of its operands, which
deterministic mode must not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from banyan_core.model_spec import ExpertsSpec
from banyan_engine.checkpoint import check_tensors, expected_shapes, let_go, norm_names, open_files
from banyan_engine.device import CPU
from banyan_engine.kernels import grouped
from banyan_engine.linear import Dense, Weight, dense, quantize_int4, quantize_int8
from banyan_engine.packed_checkpoint import PackedCheckpoint
from banyan_engine.spec import ModelError, ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class MlpWeights:
    """A gated MLP; gate and up are one weight, one below the other."""

    gate_up: Weight
    down: Weight
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsWeights:
    """A mixture: `router` [experts, hidden] scores, `shared_gate` [1, hidden] weighs `shared`.

    `grouped` is where they lie, for the compiled helper, if it has code for them.
    """

    router: Tensor
    experts: tuple[MlpWeights, ...]
    shared: MlpWeights | None
    shared_gate: Tensor | None
    grouped: grouped.Experts | None


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One decoder layer; q, k and v are one weight, one below the other."""

    attention_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Weight
    output_bias: Tensor | None
    attention_post_norm: Tensor | None
    mlp_norm: Tensor
    mlp: MlpWeights | None  # one of these two
    experts: ExpertsWeights | None
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """`embedding` is [vocab, hidden], and the same memory as `head` when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Weight


def load_weights(
    folder: Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    quantize: str | None = None,
    device: torch.device = CPU,
) -> ModelWeights:
    """All tensors in `dtype`, the matrices of layers packed where `quantize` names a format.

    The embedding then keeps `dtype`, and the head is int8. A folder that is packed on disk stays
    as its files have it. Raises ModelError naming what is
    missing, surplus or misshapen.
    """
    with ExitStack() as opened:
        try:
            sources, shapes, packed = open_files(folder, opened), expected_shapes(spec), None
            if spec.packing is not None:
                packed = PackedCheckpoint(spec.packing, shapes, sources, dtype)
                shapes = packed.file_shapes
            check_tensors(sources, shapes)
            return _Loader(sources, packed, spec, dtype, quantize, device).model()
        except SafetensorError as error:
            raise ModelError(f"{folder.name}: expected whole safetensors files: {error}") from error


class _Loader:
    """Takes tensors out of the open files, part by part of the model."""

    def __init__(
        self,
        sources: dict[str, Any],
        packed: PackedCheckpoint | None,
        spec: ModelSpec,
        dtype: torch.dtype,
        quantize: str | None,
        device: torch.device,
    ) -> None:
        self._sources = sources
        self._packed = packed
        self._device = device
        self._make, self._make_head = FORMATS[quantize], quantize_int8 if quantize else Dense
        self._spec = spec
        self._dtype = dtype

    def model(self) -> ModelWeights:
        embedding = self._take("model.embed_tokens.weight")
        tied = self._spec.tied_embeddings
        return ModelWeights(
            embedding=embedding,
            layers=tuple(self._layer(index) for index in range(self._spec.num_layers)),
            norm=self._norm("model.norm"),
            head=self._make_head(embedding) if tied else self._head("lm_head"),
        )

    def _head(self, module: str) -> Weight:
        if self._packed is not None and module in self._packed:
            return self._packed.matrix(module)
        return self._make_head(self._take(f"{module}.weight"))

    def _layer(self, index: int) -> LayerWeights:
        spec, place = self._spec, f"model.layers.{index}."
        attention, experts = place + "self_attn.", spec.layers[index].experts
        fused = spec.names.fused_qkv
        qkv = [f"{attention}{part}_proj" for part in (("qkv",) if fused else "qkv")]
        norms = [self._norm(place + name) for name in norm_names(spec)]
        return LayerWeights(
            attention_norm=norms[0],
            qkv=self._matrix(*qkv),
            qkv_bias=self._bias(*qkv) if spec.qkv_bias else None,
            q_norm=self._norm(attention + "q_norm") if spec.qk_norms else None,
            k_norm=self._norm(attention + "k_norm") if spec.qk_norms else None,
            output=self._matrix(attention + "o_proj"),
            output_bias=self._bias(attention + "o_proj") if spec.output_bias else None,
            attention_post_norm=norms[2] if spec.post_norms else None,
            mlp_norm=norms[1],
            mlp=None if experts else self._mlp(place + "mlp."),
            experts=self._experts(place, experts) if experts else None,
            mlp_post_norm=norms[3] if spec.post_norms else None,
        )

    def _mlp(self, place: str) -> MlpWeights:
        fused = self._spec.names.fused_qkv
        gate_up = [place + name for name in (("gate_up_proj",) if fused else _GATE_UP)]
        down, biased = place + "down_proj", self._spec.mlp_bias
        return MlpWeights(
            self._matrix(*gate_up),
            self._matrix(down),
            self._bias(*gate_up) if biased else None,
            self._bias(down) if biased else None,
        )

    def _experts(self, layer: str, shape: ExpertsSpec) -> ExpertsWeights:
        names = self._spec.names
        place = f"{layer}{names.experts}."
        names_of = (f"{place}experts.{number}." for number in range(shape.num_experts))
        experts = tuple(
            MlpWeights(
                self._matrix(expert + names.gate, expert + names.up),
                self._matrix(expert + names.down),
            )
            for expert in names_of
        )
        router = self._take(place + "gate.weight")
        shared = shared_gate = None
        if shape.shared_intermediate_size > 0:
            shared = self._mlp(place + "shared_expert.")
            shared_gate = self._take(place + "shared_expert_gate.weight")
        lying = _lying(router, experts, shared, shared_gate)
        return ExpertsWeights(router, experts, shared, shared_gate, lying)

    def _matrix(self, *modules: str) -> Weight:
        if self._packed is not None and modules[0] in self._packed:
            return self._packed.matrix(*modules)
        return self._make(self._take(*(f"{module}.weight" for module in modules)))

    def _bias(self, *modules: str) -> Tensor:
        return self._take(*(f"{module}.bias" for module in modules))

    def _norm(self, module: str) -> Tensor:
        weight = self._take(f"{module}.weight", dtype=torch.float32)
        return (weight + self._spec.norm_offset).to(self._dtype)

    def _take(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """The named tensors, one below the other, in fresh memory."""
        parts = [_floating(name, self._sources[name].get_tensor(name)) for name in names]
        taken = torch.cat([part.to(self._device, dtype or self._dtype) for part in parts])
        for part in parts:
            let_go(part)
        return taken


_GATE_UP = ("gate_proj", "up_proj")


def _lying(
    router: Tensor,
    experts: Sequence[MlpWeights],
    shared: MlpWeights | None,
    shared_gate: Tensor | None,
) -> grouped.Experts | None:
    """For the compiled helper, which takes them as they are: neither packed nor with biases."""
    both = [_matrices(each) for each in experts]
    plain = [each for each in both if each is not None]
    if len(plain) < len(both):
        return None
    if shared is None or shared_gate is None:
        return grouped.experts(router, plain, None)
    of_all = _matrices(shared)
    return None if of_all is None else grouped.experts(router, plain, (*of_all, shared_gate))


def _matrices(mlp: MlpWeights) -> tuple[Tensor, Tensor] | None:
    biased = mlp.gate_up_bias is not None or mlp.down_bias is not None
    if biased or not isinstance(mlp.gate_up, Dense) or not isinstance(mlp.down, Dense):
        return None
    return mlp.gate_up.matrix, mlp.down.matrix


def _floating(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ModelError(f"weights: {name}: dtype {tensor.dtype}, expected a floating-point one")
    return tensor


FORMATS: dict[str | None, Callable[[Tensor], Weight]] = {
    None: dense,
    "int8": quantize_int8,
    "int4": quantize_int4,
}
"""How the matrices of layers can be kept; None is as they are."""
