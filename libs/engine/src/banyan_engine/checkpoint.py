"""The files of a checkpoint: which tensors must be there, and the open files that hold them.

Strict in both directions: a missing tensor would be random, a surplus one means that the model
does something which the decoder does not.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from banyan_engine.spec import ModelError, ModelSpec, read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
NUM_NAMED = 4
"""How many offending tensors an error names before it counts the rest."""

Shapes = dict[str, tuple[int, ...]]


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Every tensor that a checkpoint of this spec has, by its Hugging Face name."""
    hidden = spec.hidden_size
    shapes: Shapes = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for index in range(spec.num_layers):
        place = f"model.layers.{index}."
        for name in norm_names(spec):
            shapes[f"{place}{name}.weight"] = (hidden,)
        shapes |= _attention_shapes(spec, place + "self_attn.")
        shapes |= _mlp_shapes(spec, index, place)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tied_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


def norm_names(spec: ModelSpec) -> tuple[str, ...]:
    """A layer's norms: before attention, before the MLP; then, with `post_norms`, after each."""
    if spec.post_norms:
        before, after = ("input", "pre_feedforward"), ("post_attention", "post_feedforward")
        return tuple(f"{name}_layernorm" for name in before + after)
    return ("input_layernorm", "post_attention_layernorm")


def _attention_shapes(spec: ModelSpec, place: str) -> Shapes:
    q_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    rows = {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}
    if spec.names.fused_qkv:
        rows = {"qkv_proj": q_rows + 2 * kv_rows}
    shapes: Shapes = {}
    for name, num_rows in rows.items():
        shapes[f"{place}{name}.weight"] = (num_rows, spec.hidden_size)
        if spec.qkv_bias:
            shapes[f"{place}{name}.bias"] = (num_rows,)
    shapes[place + "o_proj.weight"] = (spec.hidden_size, q_rows)
    if spec.output_bias:
        shapes[place + "o_proj.bias"] = (spec.hidden_size,)
    if spec.qk_norms:
        shapes[place + "q_norm.weight"] = shapes[place + "k_norm.weight"] = (spec.head_dim,)
    return shapes


def _mlp_shapes(spec: ModelSpec, index: int, place: str) -> Shapes:
    hidden, experts = spec.hidden_size, spec.layers[index].experts
    if experts is None:
        return _gated_shapes(spec, place + "mlp.", spec.intermediate_size)
    module, inner = f"{place}{spec.names.experts}.", experts.intermediate_size
    shapes: Shapes = {module + "gate.weight": (experts.num_experts, hidden)}
    for number in range(experts.num_experts):
        expert = f"{module}experts.{number}."
        shapes[f"{expert}{spec.names.gate}.weight"] = (inner, hidden)
        shapes[f"{expert}{spec.names.up}.weight"] = (inner, hidden)
        shapes[f"{expert}{spec.names.down}.weight"] = (hidden, inner)
    if size := experts.shared_intermediate_size:
        shapes |= _gated_shapes(spec, module + "shared_expert.", size)
        shapes[module + "shared_expert_gate.weight"] = (1, hidden)
    return shapes


def _gated_shapes(spec: ModelSpec, place: str, inner: int) -> Shapes:
    rows = {"gate_proj": inner, "up_proj": inner}
    if spec.names.fused_qkv:
        rows = {"gate_up_proj": 2 * inner}
    shapes: Shapes = {f"{place}{name}.weight": (n, spec.hidden_size) for name, n in rows.items()}
    shapes[place + "down_proj.weight"] = (spec.hidden_size, inner)
    if spec.mlp_bias:
        shapes |= {f"{place}{name}.bias": (n,) for name, n in rows.items()}
        shapes[place + "down_proj.bias"] = (spec.hidden_size,)
    return shapes


def open_files(folder: Path, opened: ExitStack) -> dict[str, Any]:
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


def check_tensors(sources: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := [name for name in shapes if name not in sources]:
        raise ModelError(f"weights: missing {_some(missing)}")
    if surplus := [name for name in sorted(sources) if name not in shapes]:
        raise ModelError(f"weights: surplus {_some(surplus)}")
    for name, shape in shapes.items():
        if (found := tuple(sources[name].get_slice(name).get_shape())) != shape:
            raise ModelError(f"weights: {name}: shape {list(found)}, expected {list(shape)}")


def let_go(mapped: Tensor) -> None:
    """Say that a tensor of an open file, which was copied, will not be read again.

    Else its pages count as this process's memory until the file is closed: a second copy of all
    weights, at the worst of times.
    """
    start, end = mapped.data_ptr(), mapped.data_ptr() + mapped.nbytes
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        length = ctypes.c_size_t(end - start)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), length, mmap.MADV_DONTNEED)


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest
