"""The models that are measured: random weights in the shapes of models that people use.

What a token costs depends on shapes and not on values, so nothing is downloaded. The folders are
written once, in bfloat16 as such models are published, into a cache outside of the repository
(`BANYAN_BENCH_MODELS`, else the user's cache folder).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banyan_engine.demo import model_folder
from banyan_engine.random_model import write_random_model
from engine_bench.serving import NotHere

SEED = 1

LLAMA_1B: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "dtype": "bfloat16",
}
QWEN3_06B: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "dtype": "bfloat16",
}
SMALL_MOE: dict[str, object] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "moe_intermediate_size": 384,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}
"""Of 0.52 billion parameters, a sixth of which a token uses besides the embeddings."""

CONFIGS = {"llama-3.2-1b": LLAMA_1B, "qwen3-0.6b": QWEN3_06B, "moe-0.5b": SMALL_MOE}
DEMO = "demo"
NAMES = (*CONFIGS, DEMO)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model's mathematics needs, whatever computes it: counted from its config.

    Parameters are those of matrix products; `expert` is one expert's, in one layer.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    head: int
    dense_per_layer: int
    expert: int = 0
    num_experts: int = 0
    num_active: int = 0

    def params_read(self, num_tokens: int) -> float:
        """Parameters that a step over `num_tokens` reads: of the experts those that are hit,
        as many as an even routing hits in the mean."""
        missed = (1 - self.num_active / self.num_experts) ** num_tokens if self.num_experts else 1
        experts = self.num_experts * (1 - missed) * self.expert
        return self.head + self.num_layers * (self.dense_per_layer + experts)

    def flops(self, num_tokens: int, num_contexts: float, num_sampled: int) -> float:
        """Of a step whose tokens attend to `num_contexts` positions in all."""
        per_layer = self.dense_per_layer + self.num_active * self.expert
        products = 2.0 * num_tokens * self.num_layers * per_layer + 2.0 * num_sampled * self.head
        return products + 4.0 * num_contexts * self.num_layers * self.num_heads * self.head_dim

    def prefill_flops(self, num_tokens: int) -> float:
        """Of a whole prompt, attention being causal."""
        return self.flops(num_tokens, num_tokens * (num_tokens + 1) / 2, 1)


def folder(name: str) -> Path:
    """The model's folder, written now if it is not there yet. Raises NotHere for one of a family
    that the engine does not have."""
    if name == DEMO:
        return model_folder()
    target = cache() / name
    config = json.dumps(CONFIGS[name], indent=1)
    there = target / "config.json"
    if not (there.is_file() and there.read_text() == config):
        print(f"  writing {name} to {target}", flush=True)
        _write(target, CONFIGS[name])
    return target


def cache() -> Path:
    named = os.environ.get("BANYAN_BENCH_MODELS")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else home / "banyan-bench-models"


def _write(target: Path, config: dict[str, object]) -> None:
    """Beside its place, then into it: a writer that is killed leaves nothing that looks whole."""
    import torch

    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    try:
        write_random_model(unfinished, config, SEED, torch.bfloat16)
    except ValueError as error:
        raise NotHere(f"{target.name}: {error}") from None
    (unfinished / "tokenizer.json").write_text(tokenizer_json(_int(config, "vocab_size")))
    unfinished.rename(target)


def tokenizer_json(vocab_size: int) -> str:
    """Bytes, then made-up words: as many tokens as the model has, for grammars to choose among."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    number = 0
    while len(vocab) < vocab_size:
        word, rest = "Ġ" if number % 2 else "", number // 2
        while True:
            word += letters[rest % 26]
            rest //= 26
            if not rest:
                break
        vocab.setdefault(word, len(vocab))
        number += 1
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }
    )


def cost(path: Path) -> Cost:
    """Of a folder of one of the families that are measured here."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    head_dim = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    layers, head = _int(config, "num_hidden_layers"), hidden * _int(config, "vocab_size")
    if "num_experts" not in config:
        dense = attention + 3 * hidden * _int(config, "intermediate_size")
        return Cost(layers, heads, head_dim, head, dense)
    num_experts = _int(config, "num_experts")
    expert = 3 * hidden * _int(config, "moe_intermediate_size")
    active = _int(config, "num_experts_per_tok")
    router = hidden * num_experts
    return Cost(layers, heads, head_dim, head, attention + router, expert, num_experts, active)


def _int(config: dict[str, Any], key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value
