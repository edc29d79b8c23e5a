"""An adapter of every family is what `transformers` computes with the adapter merged by hand."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from banyan_core.model_spec import kv_layout
from banyan_engine import tiny_families as families
from banyan_engine.flat_forward import flat_forward
from banyan_engine.lora import load_lora
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.random_model import write_random_model
from banyan_engine.reference import reference_logits
from banyan_engine.spans import Span
from banyan_engine.spec import ModelError, read_spec
from banyan_engine.tiled_forward import tiled_forward
from banyan_engine.weights import load_weights

FORWARDS = {"fast": flat_forward, "deterministic": tiled_forward}
TOLERANCE = 1e-4
NUM_TOKENS = 40
CUTS = (0, 17, 18, 33, NUM_TOKENS)
SCALE = 2.0  # alpha 8, rank 4
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
APART = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def merged_logits(folder: Path, adapter: Path, token_ids: tuple[int, ...]) -> Tensor:
    """Logits of transformers with W + scale B A in place of W."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    judge = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    deltas = load_file(adapter / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in deltas}
    with torch.inference_mode():
        for name in names:
            down, up = (deltas[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            judge.get_submodule(name).weight += SCALE * (up @ down)
        logits: Tensor = judge(torch.tensor([token_ids])).logits[0]
    return logits


@pytest.mark.parametrize("name", families.NAMES)
def test_an_adapter_of_every_family(name: str, tmp_path: Path, random_tokens: Any) -> None:
    """In chunks and single tokens, in a batch beside the base."""
    config = families.config_of(name)
    folder = write_random_model(tmp_path / "model", config, seed=1)
    modules = FUSED if name.startswith("phi3") else APART
    if "num_experts" in config or "num_local_experts" in config:
        modules = APART[:4]  # experts take none
    changes = LORA_CONFIG | {"target_modules": modules}
    adapter = write_random_lora(tmp_path / "adapter", folder, changes, seed=2)
    spec, token_ids = read_spec(folder), random_tokens(NUM_TOKENS, seed=3)
    num_tensors = len(load_file(adapter / "adapter_model.safetensors"))
    assert num_tensors == 2 * len(modules) * spec.num_layers
    lora = load_lora(adapter, spec, torch.float32)
    model = Model(spec, load_weights(folder, spec, torch.float32))
    wanted = merged_logits(folder, adapter, token_ids)
    base = reference_logits(model, token_ids)
    assert float((wanted - base).abs().max()) > 0.05, "the adapter does something"
    for forward in FORWARDS.values():
        kv = PagedKv(kv_layout(spec, "float32"), 16, 16)
        for start, end in itertools.pairwise(CUTS):
            tokens = torch.tensor(token_ids[start:end])
            first, second = torch.tensor((5, 3, 8)), torch.tensor((1, 9, 2))
            spans = [
                Span(tokens, start, first, end - start, adapter=lora),
                Span(tokens, start, second, end - start),
            ]
            with torch.inference_mode():
                found = forward(model, kv, spans, lambda _: None)
            expected = torch.cat((wanted[start:end], base[start:end]))
            assert float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["mixtral-0", "qwen2_moe-0", "qwen3_moe-0"])
def test_an_adapter_of_experts_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", families.config_of(name), seed=1)
    adapter = write_random_lora(tmp_path / "adapter", folder, LORA_CONFIG, seed=2)
    path = adapter / "adapter_model.safetensors"
    expert = "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight"
    save_file(load_file(path) | {expert: torch.zeros(4, 32)}, path)
    with pytest.raises(ModelError, match=re.escape(f"surplus {expert}")):
        load_lora(adapter, read_spec(folder), torch.float32)
