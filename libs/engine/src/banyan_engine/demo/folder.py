"""Writes and reads the model folder in Hugging Face layout.

The folder is all that other programs see of this package, so it holds nothing
of our own: a stock `LlamaForCausalLM` reads it.  Weights are stored in bfloat16
to stay within 12 MB; training and evaluation compute in float32.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from banyan_engine.demo.model import Llama, ModelShape
from banyan_engine.demo.tokenizer import BEGIN_ID, END_ID, PAD_ID

WEIGHTS: Final = "model.safetensors"
SPECIAL_IDS: Final = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}


def _shape_as_dict(shape: ModelShape) -> dict[str, int | float]:
    return {item.name: getattr(shape, item.name) for item in fields(shape)}


def save_model(model: Llama, folder: Path) -> None:
    """Write configuration and weights; the weights appear at once or not at all."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_shape_as_dict(model.shape),
        "head_dim": model.shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        **SPECIAL_IDS,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"do_sample": False, **SPECIAL_IDS}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    draft = folder / f"{WEIGHTS}.new"
    save_file(tensors, draft, metadata={"format": "pt"})
    draft.replace(folder / WEIGHTS)


def load_model(folder: Path) -> Llama:
    """Return the model of the folder, in float32."""
    config = json.loads((folder / "config.json").read_text())
    shape = ModelShape(**{item.name: config[item.name] for item in fields(ModelShape)})
    model = Llama(shape)
    tensors = load_file(folder / WEIGHTS)
    model.load_state_dict(
        {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
    )
    return model
