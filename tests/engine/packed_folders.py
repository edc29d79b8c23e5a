"""Writes checkpoints in the published layouts, number by number, and says what they stand for.

Nothing here is the engine's code: words are put together bit by bit as the layouts' own packages
describe them, so that what the engine reads is held against something that was written otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from banyan_engine.random_model import TINY_CONFIG, write_random_model

SINGLE_NAME = "model.safetensors"
LLAMA: dict[str, object] = TINY_CONFIG | {"hidden_size": 128, "intermediate_size": 256}
Words = NDArray[np.uint32]


@dataclass(frozen=True)
class Form:
    """A layout with its parameters; `group` None is one scale for all input channels."""

    layout: str
    group: int | None = 128
    bits: int = 4
    zeros: bool = False
    scale_dtype: torch.dtype = torch.bfloat16
    version: str = "gptq"

    @property
    def config(self) -> dict[str, Any]:
        """What stands in config.json."""
        size = -1 if self.group is None else self.group
        if self.layout == "gptq":
            common = {"quant_method": "gptq", "bits": self.bits, "group_size": size}
            version = {"checkpoint_format": self.version}
            return common | version | {"desc_act": False, "sym": not self.zeros}
        if self.layout == "awq":
            common = {"quant_method": "awq", "bits": self.bits, "group_size": size}
            return common | {"version": "gemm", "zero_point": self.zeros}
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": not self.zeros,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "dynamic": False,
            "actorder": None,
        }
        scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": scheme},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "quantization_status": "compressed",
        }


def is_matrix(name: str) -> bool:
    """Whether the packages would pack this tensor: a linear layer, but no router and no head."""
    is_linear = name.startswith("model.layers.") and name.endswith("proj.weight")
    return is_linear or name.endswith(("w1.weight", "w2.weight", "w3.weight"))


def write_packed(
    folder: Path,
    form: Form,
    config: dict[str, object] | None = None,
    packs: Callable[[str], bool] = is_matrix,
) -> dict[str, Tensor]:
    """A folder with random weights in this form. Returns its tensors as plain numbers, float32."""
    return pack_folder(write_random_model(folder, LLAMA | (config or {}), seed=7), form, packs)


def pack_folder(
    folder: Path, form: Form, packs: Callable[[str], bool] = is_matrix
) -> dict[str, Tensor]:
    """Pack a folder where it is. Returns its tensors as plain numbers, float32."""
    plain, files = load_file(folder / SINGLE_NAME), {}
    for name, tensor in plain.items():
        if not packs(name):
            files[name] = tensor
            continue
        module = name.removesuffix(".weight")
        stands_for, packed = pack(tensor, form)
        plain[name] = stands_for
        files |= {f"{module}.{part}": value for part, value in packed.items()}
    written = json.loads((folder / "config.json").read_text()) | {
        "quantization_config": form.config
    }
    (folder / "config.json").write_text(json.dumps(written))
    save_file({name: tensor.contiguous() for name, tensor in files.items()}, folder / SINGLE_NAME)
    return plain


def write_plain(folder: Path, packed: Path, tensors: dict[str, Tensor]) -> Path:
    """The same model with nothing packed."""
    folder.mkdir()
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE_NAME)
    return folder


def pack(matrix: Tensor, form: Form) -> tuple[Tensor, dict[str, Tensor]]:
    """What the packed matrix stands for, and its tensors."""
    num_in = matrix.shape[1]
    size = form.group or num_in
    groups = matrix.float().reshape(len(matrix), -1, size)
    levels, half = 2**form.bits - 1, 2 ** (form.bits - 1)
    if form.zeros:
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        scales = ((high - low) / levels).to(form.scale_dtype)
        zeros = (-low / scales.float()).round().clamp(0, levels)
    else:
        scales = (groups.abs().amax(2) / (half - 0.5)).to(form.scale_dtype)
        zeros = torch.full(scales.shape, float(half))
    wide = scales.float()[:, :, None]
    numbers = (groups / wide + zeros[:, :, None]).round().clamp(0, levels)
    stands_for = ((numbers - zeros[:, :, None]) * wide).flatten(1)
    n = numbers.flatten(1).numpy().astype(np.uint32)
    z = zeros.numpy().astype(np.uint32)
    return stands_for, LAYOUTS[form.layout](n, z, scales, form)


def _compressed(n: Words, z: Words, scales: Tensor, form: Form) -> dict[str, Tensor]:
    packed = {
        "weight_packed": _along_rows(n, form.bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(n.shape),
    }
    if form.zeros:
        packed["weight_zero_point"] = _along_rows(z.T, form.bits).t()
    return packed


def _gptq(n: Words, z: Words, scales: Tensor, form: Form) -> dict[str, Tensor]:
    stored = (z + np.uint32(15)) & np.uint32(15) if form.version == "gptq" else z  # less one
    size = form.group or n.shape[1]
    return {
        "qweight": _along_rows(n, 4).t(),
        "qzeros": _along_rows(stored.T, 4),
        "scales": scales.t(),
        "g_idx": torch.tensor([i // size for i in range(n.shape[1])], dtype=torch.int32),
    }


def _awq(n: Words, z: Words, scales: Tensor, form: Form) -> dict[str, Tensor]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleaved(rows: Words) -> Tensor:
        mixed = rows.copy()
        for start in range(0, rows.shape[1], 8):
            for place, column in enumerate(order):
                mixed[:, start + place] = rows[:, start + column]
        return _along_rows(mixed, 4)

    return {"qweight": interleaved(n.T), "qzeros": interleaved(z.T), "scales": scales.t()}


def _along_rows(numbers: Words, bits: int) -> Tensor:
    """Neighbours of a row into one int32, the first in its lowest bits."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], -(-numbers.shape[1] // per_word)), dtype=np.uint32)
    for column in range(numbers.shape[1]):
        words[:, column // per_word] |= numbers[:, column] << (column % per_word * bits)
    return torch.from_numpy(words.view(np.int32))


LAYOUTS = {"compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq}
