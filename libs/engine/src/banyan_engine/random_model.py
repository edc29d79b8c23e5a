"""Model folders with random weights, for tests and measurements: no download, any shape."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from banyan_engine.checkpoint import SINGLE_NAME, expected_shapes
from banyan_engine.spec import read_spec

TINY_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
"""A Llama that computes in a millisecond."""


def write_random_model(
    folder: Path, config: dict[str, object], seed: int, dtype: torch.dtype = torch.float32
) -> Path:
    """Write `config.json` and weights; the same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    spec, tensors = read_spec(folder), {}
    for name, shape in expected_shapes(spec).items():
        noise = torch.randn(shape, generator=generator)
        # Norms near 1 and matrices that keep the scale of their input, as trained ones do.
        if name.endswith("norm.weight"):
            noise.mul_(0.1).add_(1 - spec.norm_offset)
        else:
            noise.mul_(0.1 if len(shape) == 1 else shape[1] ** -0.5)
        tensors[name] = noise.to(dtype)
    save_file(tensors, folder / SINGLE_NAME, metadata={"format": "pt"})
    return folder
