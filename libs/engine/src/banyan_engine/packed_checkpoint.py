"""Matrices of a checkpoint whose files hold them packed: which tensors each has, and reading them.

A matrix is packed where the files have its packed tensors; the others (the embedding, nearly always
the head, routers) are there as in any checkpoint. One matrix is unpacked at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from banyan_core.model_spec import Packing
from banyan_engine.checkpoint import Shapes, let_go
from banyan_engine.linear import Weight
from banyan_engine.packed_layouts import (
    awq_nibbles,
    int4_of,
    int8_of,
    stacked,
    words_to_bytes,
    words_to_nibbles,
)
from banyan_engine.spec import ModelError

_WORDS = {"compressed-tensors": "weight_packed", "gptq": "qweight", "awq": "qweight"}


class PackedCheckpoint:
    """`shapes` are those of the model's tensors as if nothing were packed."""

    def __init__(
        self, packing: Packing, shapes: Shapes, sources: dict[str, Any], dtype: torch.dtype
    ) -> None:
        self._packing = packing
        self._sources = sources
        self._dtype = dtype
        words = f".{_WORDS[packing.layout]}"
        packed = {name.removesuffix(words) for name in sources if name.endswith(words)}
        self._shapes = {
            name.removesuffix(".weight"): shape
            for name, shape in shapes.items()
            if name.removesuffix(".weight") in packed and len(shape) == 2
        }
        self.file_shapes: Shapes = {}
        """What the files must have."""
        for name, shape in shapes.items():
            module = name.removesuffix(".weight")
            of_module = self._tensors(module) if module in self._shapes else {name: shape}
            self.file_shapes |= of_module
        self._check_zero_biases(shapes)

    def __contains__(self, module: str) -> bool:
        return module in self._shapes

    def matrix(self, *modules: str) -> Weight:
        """The named matrices, one below the other. Raises ModelError."""
        for module in modules:
            if module not in self:
                wanted = f"packed as {modules[0]}, with which it is one product"
                raise ModelError(f"weights: {module}: is not packed, expected {wanted}")
        return stacked([self._read(module) for module in modules])

    def _tensors(self, module: str) -> Shapes:
        """The tensors of one packed matrix."""
        num_out, num_in = self._shapes[module]
        size = self._packing.group_size or num_in
        if num_in % size:
            raise ModelError(f"weights: {module}: {num_in} inputs, expected a multiple of {size}")
        groups, per_word = num_in // size, 32 // self._packing.bits
        words_in, words_out = -(-num_in // per_word), -(-num_out // per_word)
        if self._packing.layout == "compressed-tensors":
            shapes: Shapes = {
                "weight_packed": (num_out, words_in),
                "weight_scale": (num_out, groups),
                "weight_shape": (2,),
            }
            if f"{module}.weight_zero_point" in self._sources:
                shapes["weight_zero_point"] = (words_out, groups)
        else:
            shapes = {"qzeros": (groups, words_out), "scales": (groups, num_out)}
            if self._packing.layout == "awq":
                shapes["qweight"] = (num_in, words_out)
            else:
                shapes |= {"qweight": (words_in, num_out), "g_idx": (num_in,)}
        return {f"{module}.{name}": shape for name, shape in shapes.items()}

    def _check_zero_biases(self, shapes: Shapes) -> None:
        """Some writers of GPTQ give every matrix a bias; a model that has none has zeros there."""
        for module in self._shapes if self._packing.layout == "gptq" else ():
            name = f"{module}.bias"
            if name in self._sources and name not in shapes:
                if self._sources[name].get_tensor(name).any():
                    raise ModelError(f"weights: {name}: expected zeros, for the model has no bias")
                self.file_shapes[name] = (self._shapes[module][0],)

    def _read(self, module: str) -> Weight:
        tensors = {
            name.rpartition(".")[2]: self._sources[name].get_tensor(name)
            for name in self._tensors(module)
        }
        _check_types(module, tensors)
        if self._packing.layout == "compressed-tensors":
            weight = self._compressed(module, tensors)
        else:
            weight = self._gptq_or_awq(module, tensors)
        for tensor in tensors.values():
            let_go(tensor)
        return weight

    def _compressed(self, module: str, tensors: dict[str, Tensor]) -> Weight:
        shape = self._shapes[module]
        if tensors["weight_shape"].tolist() != list(shape):
            found = tensors["weight_shape"].tolist()
            raise ModelError(f"weights: {module}.weight_shape: {found}, expected {list(shape)}")
        num_out, num_in = shape
        words, scales = tensors["weight_packed"], tensors["weight_scale"]
        if self._packing.bits == 8:
            return int8_of(words_to_bytes(words)[:, :num_in], scales, self._dtype)
        zeros = tensors.get("weight_zero_point")
        if zeros is not None:
            zeros = words_to_nibbles(zeros.t())[:, :num_out].t()
        return int4_of(words_to_nibbles(words)[:, :num_in], scales, zeros)

    def _gptq_or_awq(self, module: str, tensors: dict[str, Tensor]) -> Weight:
        num_out, num_in = self._shapes[module]
        scales = tensors["scales"].t()
        if self._packing.layout == "awq":
            zeros = awq_nibbles(tensors["qzeros"])[:, :num_out].t()
            return int4_of(awq_nibbles(tensors["qweight"])[:, :num_out].t(), scales, zeros)
        size = self._packing.group_size or num_in
        if not torch.equal(tensors["g_idx"].long(), torch.arange(num_in) // size):
            raise ModelError(f"weights: {module}.g_idx: expected groups of {size} in order")
        zeros = words_to_nibbles(tensors["qzeros"])[:, :num_out].t()
        zeros = (zeros + self._packing.zero_shift) & 15
        return int4_of(words_to_nibbles(tensors["qweight"].t())[:, :num_in], scales, zeros)


def _check_types(module: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name in ("weight_scale", "scales"):
            is_right, wanted = tensor.is_floating_point(), "a floating-point one"
        else:
            is_right, wanted = tensor.dtype == torch.int32, "torch.int32"
        if not is_right and name != "weight_shape":
            found = f"weights: {module}.{name}: dtype {tensor.dtype}"
            raise ModelError(f"{found}, expected {wanted}")
