"""LoRA adapters beside a model that stays as it is: y = x W + scale (x A) B, for some rows.

The rows of one product may belong to sequences with different adapters, or none: the product
with the model's weights is made for all of them at once, and each adapter adds its share to its
own rows. A row without an adapter is never touched, so it has the bits that it would have alone.

The decoder holds q, k, v (and gate, up) side by side in one matrix; a delta of one of them goes
to its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from banyan_engine.device import CPU
from banyan_engine.linear import Dense, Weight, dense, linear
from banyan_engine.lora_config import LoraConfig, read_lora_config
from banyan_engine.spec import ModelError, ModelSpec

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_RANK = 512
PREFIX = "base_model.model."
NUM_NAMED = 4
"""How many offending tensors an error names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """A linear module of the checkpoint, and where it lies in the decoder.

    `product` is the field of `LayerWeights` that holds it, from column `first` on.
    """

    layer: int
    product: str
    num_in: int
    num_out: int
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What one adapter adds to some columns of one product; `up` has the scale in it."""

    down: Dense
    up: Dense
    columns: slice


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """One adapter: for each layer the deltas of each product."""

    layers: tuple[Mapping[str, tuple[Delta, ...]], ...]

    @property
    def num_bytes(self) -> int:
        deltas = (delta for layer in self.layers for each in layer.values() for delta in each)
        return sum(delta.down.num_bytes + delta.up.num_bytes for delta in deltas)


class LoraRows:
    """Which rows of a batch have which adapter."""

    def __init__(self, groups: Sequence[tuple[LoraWeights, Tensor | slice]]) -> None:
        self._groups = groups

    def add(self, layer: int, product: str, x: Tensor, y: Tensor) -> None:
        """Add each adapter's share of this product, y [rows, out] of x [rows, in], in place."""
        for weights, rows in self._groups:
            for delta in weights.layers[layer].get(product, ()):
                y[rows, delta.columns] += linear(linear(x[rows], delta.down), delta.up)


def product(
    x: Tensor, weight: Weight, bias: Tensor | None, lora: LoraRows | None, layer: int, name: str
) -> Tensor:
    """x [rows, in] through one of a layer's weights and what adapters add to it."""
    y = linear(x, weight, bias)
    if lora is not None:
        lora.add(layer, name, x, y)
    return y


def lora_of_all(weights: LoraWeights | None) -> LoraRows | None:
    """For a batch of one sequence's tokens only."""
    return None if weights is None else LoraRows([(weights, slice(None))])


def lora_rows(
    parts: Sequence[tuple[LoraWeights | None, int]], device: torch.device = CPU
) -> LoraRows | None:
    """For the rows of several sequences, one after the other; None when none has an adapter."""
    found: dict[int, tuple[LoraWeights, list[int]]] = {}
    end = 0
    for weights, num_rows in parts:
        start, end = end, end + num_rows
        if weights is not None and num_rows:
            found.setdefault(id(weights), (weights, []))[1].extend(range(start, end))
    if not found:
        return None
    return LoraRows([(weights, _index(rows, device)) for weights, rows in found.values()])


def _index(rows: list[int], device: torch.device) -> Tensor | slice:
    """Rows that lie together are read and written where they are."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows).to(device)


def lora_targets(spec: ModelSpec) -> dict[str, LoraTarget]:
    """Every module that an adapter of this model may change, by its name in the checkpoint."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    targets: dict[str, LoraTarget] = {}
    for layer in range(spec.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        targets[attention + "o_proj"] = LoraTarget(layer, "output", q, hidden)
        if spec.names.fused_qkv:
            targets[attention + "qkv_proj"] = LoraTarget(layer, "qkv", hidden, q + 2 * kv)
        else:
            targets[attention + "q_proj"] = LoraTarget(layer, "qkv", hidden, q)
            targets[attention + "k_proj"] = LoraTarget(layer, "qkv", hidden, kv, q)
            targets[attention + "v_proj"] = LoraTarget(layer, "qkv", hidden, kv, q + kv)
        if spec.layers[layer].experts is not None:
            continue  # an adapter of experts is refused, as tensors that nobody expects
        targets[mlp + "down_proj"] = LoraTarget(layer, "down", inner, hidden)
        if spec.names.fused_qkv:
            targets[mlp + "gate_up_proj"] = LoraTarget(layer, "gate_up", hidden, 2 * inner)
        else:
            targets[mlp + "gate_proj"] = LoraTarget(layer, "gate_up", hidden, inner)
            targets[mlp + "up_proj"] = LoraTarget(layer, "gate_up", hidden, inner, inner)
    return targets


def load_lora(
    folder: Path, spec: ModelSpec, dtype: torch.dtype, device: torch.device = CPU
) -> LoraWeights:
    """Raises ModelError naming what is not understood, missing, surplus or misshapen."""
    config = read_lora_config(folder)
    targets = {name: each for name, each in lora_targets(spec).items() if config.has(name)}
    if not targets:
        raise ModelError(f"target_modules: {config.targets!r}: the model has none of them")
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path.name}: expected a whole safetensors file: {error}") from error
    _check(tensors, dict(_expected_shapes(config, targets)))
    layers: list[dict[str, tuple[Delta, ...]]] = [{} for _ in range(spec.num_layers)]
    for name, target in targets.items():
        down, up = (tensors[f"{PREFIX}{name}.lora_{side}.weight"] for side in "AB")
        columns = slice(target.first, target.first + target.num_out)
        scaled = up.to(torch.float32) * config.scale_of(name)
        delta = Delta(dense(down.to(device, dtype)), dense(scaled.to(device, dtype)), columns)
        products = layers[target.layer]
        products[target.product] = (*products.get(target.product, ()), delta)
    return LoraWeights(tuple(layers))


def _expected_shapes(
    config: LoraConfig, targets: Mapping[str, LoraTarget]
) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, target in targets.items():
        rank = config.rank_of(name)
        if rank > MAX_RANK:
            raise ModelError(f"r: {rank} for {name}, expected at most {MAX_RANK}")
        yield f"{PREFIX}{name}.lora_A.weight", (rank, target.num_in)
        yield f"{PREFIX}{name}.lora_B.weight", (target.num_out, rank)


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    if missing := [name for name in shapes if name not in tensors]:
        raise ModelError(f"{WEIGHTS_NAME}: missing {_some(missing)}")
    if surplus := [name for name in sorted(tensors) if name not in shapes]:
        raise ModelError(f"{WEIGHTS_NAME}: surplus {_some(surplus)}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            found = list(tensor.shape)
            raise ModelError(f"{WEIGHTS_NAME}: {name}: shape {found}, expected {list(shape)}")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{WEIGHTS_NAME}: {name}: expected finite floating-point numbers")


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest
