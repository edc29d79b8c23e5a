"""Tensors of a model folder, checked against what its spec says must be there.

Strict in both directions: a missing tensor would be random, a surplus one means that the model
does something which the decoder does not. Files are mapped, not read, but each tensor is copied
once into fresh memory: the mapping is not aligned, and the bits of a matrix product may depend
on the alignment of its operands, which deterministic mode must not see.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from banyan_engine.linear import Dense, Weight, dense
from banyan_engine.spec import ModelError, ModelSpec, read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
NUM_NAMED = 4
"""How many offending tensors an error names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; q, k, v and gate, up are each one weight, one below the other."""

    attention_norm: Tensor
    qkv: Weight
    output: Weight
    mlp_norm: Tensor
    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """`embedding` is [vocab, hidden], and the same memory as `head` when they are tied."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Weight


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this spec has, by its Hugging Face name."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for index in range(spec.num_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "self_attn.q_proj.weight"] = (q_rows, hidden)
        shapes[layer + "self_attn.k_proj.weight"] = (kv_rows, hidden)
        shapes[layer + "self_attn.v_proj.weight"] = (kv_rows, hidden)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, q_rows)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes[layer + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def load_weights(folder: Path, spec: ModelSpec, dtype: torch.dtype) -> ModelWeights:
    """All tensors in `dtype`. Raises ModelError naming what is missing, surplus or misshapen."""
    with ExitStack() as opened:
        try:
            sources = _open_files(folder, opened)
            _check(sources, expected_shapes(spec))
            return _assemble(sources, spec, dtype)
        except SafetensorError as error:
            raise ModelError(f"{folder.name}: expected whole safetensors files: {error}") from error


def _open_files(folder: Path, opened: ExitStack) -> dict[str, Any]:
    """Each tensor's name with the open file that holds it."""
    sources: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file = opened.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path.name}: expected a whole safetensors file: {error}") from error
        for name in file.keys():  # noqa: SIM118 - the handle is no mapping
            if name in sources:
                raise ModelError(f"{path.name}: {name}: expected in one file only")
            sources[name] = file
    return sources


def _weight_files(folder: Path) -> list[Path]:
    if not (folder / INDEX_NAME).exists():
        return [folder / SINGLE_NAME]
    placed = read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError(f"{INDEX_NAME}: weight_map: expected an object of tensor to file")
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{INDEX_NAME}: weight_map: {name!r}, expected a name without folder")
    return [folder / name for name in names]


def _check(sources: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := [name for name in shapes if name not in sources]:
        raise ModelError(f"weights: missing {_some(missing)}")
    if surplus := [name for name in sorted(sources) if name not in shapes]:
        raise ModelError(f"weights: surplus {_some(surplus)}")
    for name, shape in shapes.items():
        if (found := tuple(sources[name].get_slice(name).get_shape())) != shape:
            raise ModelError(f"weights: {name}: shape {list(found)}, expected {list(shape)}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest


def _assemble(sources: dict[str, Any], spec: ModelSpec, dtype: torch.dtype) -> ModelWeights:
    def take(*names: str) -> Tensor:
        """The named tensors, one below the other, in fresh memory."""
        parts = [_floating(name, sources[name].get_tensor(name)) for name in names]
        return torch.cat([part.to(dtype) for part in parts])

    def matrix(*names: str) -> Weight:
        return dense(take(*names))

    def layer(index: int) -> LayerWeights:
        place = f"model.layers.{index}."
        attention, mlp = place + "self_attn.", place + "mlp."
        return LayerWeights(
            attention_norm=take(place + "input_layernorm.weight"),
            qkv=matrix(*(f"{attention}{part}_proj.weight" for part in "qkv")),
            output=matrix(attention + "o_proj.weight"),
            mlp_norm=take(place + "post_attention_layernorm.weight"),
            gate_up=matrix(mlp + "gate_proj.weight", mlp + "up_proj.weight"),
            down=matrix(mlp + "down_proj.weight"),
        )

    embedding = take("model.embed_tokens.weight")
    return ModelWeights(
        embedding=embedding,
        layers=tuple(layer(index) for index in range(spec.num_layers)),
        norm=take("model.norm.weight"),
        head=Dense(embedding if spec.tied_embeddings else take("lm_head.weight")),
    )


def _floating(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ModelError(f"weights: {name}: dtype {tensor.dtype}, expected a floating-point one")
    return tensor
