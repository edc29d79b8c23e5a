"""Adapter folders that cannot be served: each is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from banyan_engine.lora import load_lora
from banyan_engine.lora_config import read_lora_config
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.spec import ModelError, read_spec


@pytest.fixture
def adapter_folder(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[[], Path]:
    """An adapter of the first tiny model, to be spoiled."""

    def folder() -> Path:
        return write_random_lora(tmp_path / "adapter", model_folder(), LORA_CONFIG, seed=1)

    return folder


WRONG_CONFIGS: list[tuple[dict[str, object], str]] = [
    ({"peft_type": "LOHA"}, "peft_type: 'LOHA', expected 'LORA'"),
    ({"use_dora": True}, "use_dora: True"),
    ({"bias": "all"}, "bias: 'all', expected 'none'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"megatron_config": {"x": 1}}, "megatron_config"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"a_field_of_tomorrow": 3}, "a_field_of_tomorrow: 3, expected no such field"),
    ({"r": 0}, "r: 0, expected a positive integer"),
    ({"lora_alpha": "8"}, "lora_alpha: '8', expected a number"),
    ({"target_modules": None}, "target_modules: None"),
    ({"target_modules": []}, "target_modules: ()"),
    ({"target_modules": "("}, "target_modules: '(', expected a pattern"),
    ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern.q_proj: '4'"),
    ({"layers_to_transform": "all"}, "layers_to_transform: 'all'"),
]


@pytest.mark.parametrize("change, said", WRONG_CONFIGS)
def test_a_config_that_is_not_understood_is_refused_by_name(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA_CONFIG | change))
    with pytest.raises(ModelError) as caught:
        read_lora_config(tmp_path)
    assert f"adapter_config.json: {said}" in str(caught.value)


def test_a_config_as_peft_writes_it_is_understood(tmp_path: Path) -> None:
    """Every field of a file of peft 0.17, most of which are empty."""
    empty = (
        "auto_mapping corda_config eva_config exclude_modules layer_replication layers_pattern "
        "layers_to_transform megatron_config modules_to_save revision target_parameters "
        "trainable_token_indices"
    )
    config: dict[str, object] = dict.fromkeys(empty.split())
    config |= {
        "alpha_pattern": {},
        "base_model_name_or_path": "some/model",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "loftq_config": {},
        "lora_alpha": 16,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    read = read_lora_config(tmp_path)
    assert read.has("model.layers.3.self_attn.q_proj")
    assert not read.has("model.layers.3.self_attn.k_proj")
    assert read.scale_of("model.layers.3.self_attn.q_proj") == 2.0


A_DOWN = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors[A_DOWN]


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 32)


def _misshape(tensors: dict[str, Tensor]) -> None:
    tensors[A_DOWN] = torch.zeros(4, 64)


def _rank(tensors: dict[str, Tensor]) -> None:
    tensors[A_DOWN] = torch.zeros(8, 32)


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors[A_DOWN][0, 0] = torch.nan


def _whole_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[A_DOWN] = torch.zeros(4, 32, dtype=torch.int64)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (_drop, f"missing {A_DOWN}"),
        (_add, "surplus base_model.model.lm_head.lora_A.weight"),
        (_misshape, f"{A_DOWN}: shape [4, 64], expected [4, 32]"),
        (_rank, f"{A_DOWN}: shape [8, 32], expected [4, 32]"),
        (_nan, f"{A_DOWN}: expected finite floating-point numbers"),
        (_whole_numbers, f"{A_DOWN}: expected finite floating-point numbers"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    spoil: Callable[[dict[str, Tensor]], None], said: str, model_folder: Any, adapter_folder: Any
) -> None:
    folder = adapter_folder()
    tensors = load_file(folder / "adapter_model.safetensors")
    spoil(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        load_lora(folder, read_spec(model_folder()), torch.float32)
    assert said in str(caught.value)


def test_an_adapter_of_another_model_is_refused(model_folder: Any, adapter_folder: Any) -> None:
    spec = read_spec(model_folder("one kv head, wide heads"))
    with pytest.raises(ModelError, match=r"missing .*layers\.2"):
        load_lora(adapter_folder(), spec, torch.float32)


@pytest.mark.parametrize("num_bytes", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(
    num_bytes: int, model_folder: Any, adapter_folder: Any
) -> None:
    path = adapter_folder() / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match="expected a whole safetensors file"):
        load_lora(path.parent, read_spec(model_folder()), torch.float32)


def test_absent_files_are_named(tmp_path: Path, model_folder: Any, adapter_folder: Any) -> None:
    spec = read_spec(model_folder())
    with pytest.raises(ModelError, match=r"adapter_config\.json: not found"):
        load_lora(tmp_path, spec, torch.float32)
    folder = adapter_folder()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load_lora(folder, spec, torch.float32)
