"""config.json: what is understood, and that all else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from banyan_core.model_spec import ModelError, RopeSpec
from banyan_engine.random_model import TINY_CONFIG
from banyan_engine.spec import read_spec

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

QWEN2 = {"architectures": ["Qwen2ForCausalLM"]}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def folder_of(path: Path, **changes: Any) -> Path:
    """A folder with a config only; a change to None deletes the field."""
    config = {name: value for name, value in (TINY_CONFIG | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_sizes_and_defaults(tmp_path: Path) -> None:
    spec = read_spec(folder_of(tmp_path))
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (2, 4, 2, 8)
    assert (spec.context_tokens, spec.tied_embeddings, spec.end_token_ids) == (512, False, (2,))
    without = read_spec(folder_of(tmp_path, num_key_value_heads=None, eos_token_id=None))
    assert (without.num_kv_heads, without.end_token_ids) == (4, ())


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({}, RopeSpec(8, 10_000.0)),
        ({"rope_theta": None}, RopeSpec(8, 10_000.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}}, RopeSpec(8, 5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeSpec(8, 1e4, "linear", 2.0)),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 77}, "rope_theta": None},
            RopeSpec(8, 77.0),
        ),
        ({"rope_scaling": LLAMA3}, RopeSpec(8, 1e4, "llama3", 8.0, 1.0, 4.0, 64)),
    ],
)
def test_both_spellings_of_rope(changes: dict[str, Any], wanted: RopeSpec, tmp_path: Path) -> None:
    assert read_spec(folder_of(tmp_path, **changes)).ropes == (wanted,)


def test_generation_config_names_the_end_tokens(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}', encoding="utf-8")
    assert read_spec(folder_of(tmp_path)).end_token_ids == (5, 6)
    (tmp_path / "generation_config.json").write_text("{}", encoding="utf-8")
    assert read_spec(folder_of(tmp_path)).end_token_ids == (2,)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"architectures": ["GptOss"]},
            r"architectures: \['GptOss'\], expected .*LlamaForCausalLM",
        ),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, r"architectures: \['DeepseekV3.*, expected"),
        ({"architectures": None}, "architectures: None, expected"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu', expected one of silu"),
        (QWEN2 | {"attention_bias": True}, "attention_bias: True, expected false"),
        (QWEN2 | {"mlp_bias": True}, "mlp_bias: True, expected false"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: is set"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quant_method: None, expected"),
        ({"sliding_window": 128}, "sliding_window: 128, expected null"),
        (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types: .*, expected 2 of them"),
        (QWEN2 | {"layer_types": ["chunked"] * 2}, "layer_types: 'chunked', expected sliding"),
        (
            QWEN2 | {"layer_types": ["sliding_attention"] * 2},
            "sliding_window: None, expected a positive integer for sliding layers",
        ),
        (
            QWEN2 | {"sliding_window": 8, "use_sliding_window": True},
            "max_window_layers: None, expected an integer from 0",
        ),
        ({"architectures": ["Gemma2ForCausalLM"]}, "query_pre_attn_scalar: None, expected"),
        (MIXTRAL | {"num_local_experts": None}, "num_local_experts: None, expected"),
        (MIXTRAL | {"num_experts_per_tok": 9}, "num_experts_per_tok: 9, expected at most 4"),
        ({"hidden_size": None}, "hidden_size: None, expected a positive integer"),
        ({"vocab_size": "many"}, "vocab_size: 'many', expected a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers: True, expected a positive integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3, expected a divisor"),
        ({"head_dim": 7}, "head_dim: 7, expected an even number"),
        ({"num_attention_heads": 64, "num_key_value_heads": 64}, "head_dim: 0, expected"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0, expected a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no', expected true or false"),
        ({"eos_token_id": "<end>"}, "eos_token_id: '<end>', expected"),
        ({"rope_scaling": 4}, "rope_scaling: 4, expected an object"),
        (
            {"rope_scaling": {"rope_type": "mrope"}},
            "rope_scaling: rope_type: 'mrope', expected one",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor: None, expected"),
        ({"rope_scaling": LLAMA3 | {"beta_slow": 1}}, "beta_slow: 1, expected no such field"),
        ({"rope_scaling": {"type": "longrope"}}, r"short_factor: \[\], expected a list of 4"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor: None, expected"),
        (
            {"rope_scaling": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor: 0.5, expected 1",
        ),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "high_freq_factor: 1.0, expected more than 1.0",
        ),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        read_spec(folder_of(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_config_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json: expected a JSON object"):
        read_spec(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: not found in"):
        read_spec(tmp_path)
