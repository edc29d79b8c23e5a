"""Adapter folders with random weights in peft's format, for tests and measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from banyan_engine.lora import PREFIX, WEIGHTS_NAME, lora_targets
from banyan_engine.lora_config import CONFIG_NAME, read_lora_config
from banyan_engine.spec import read_spec

LORA_CONFIG: dict[str, object] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def write_random_lora(
    folder: Path, model: Path, config: Mapping[str, object], seed: int, size: float = 1.0
) -> Path:
    """Write an adapter for the model of a folder; the same seed gives the same bytes.

    With `size` 1 a delta is about as large as what it is added to, so that answers differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1), encoding="utf-8")
    chosen = read_lora_config(folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, target in lora_targets(read_spec(model)).items():
        if not chosen.has(name):
            continue
        rank = chosen.rank_of(name)
        down = torch.randn(rank, target.num_in, generator=generator) * target.num_in**-0.5
        up = torch.randn(target.num_out, rank, generator=generator) * rank**-0.5
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up * (size / abs(chosen.scale_of(name)))
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    return folder
