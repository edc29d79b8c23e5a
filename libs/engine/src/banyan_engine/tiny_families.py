"""Tiny configurations of every family, in both spellings, with random sizes from a seed."""

from __future__ import annotations

import random

Config = dict[str, object]

VOCAB_SIZE = 97
CONTEXT_TOKENS = 256
LLAMA3: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: Config = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARN_BY_HAND: Config = YARN | {"beta_fast": 20, "beta_slow": 2, "attention_factor": 1.3}
YARN_MSCALE: Config = YARN | {"mscale": 0.8, "mscale_all_dim": 0.4, "truncate": False}


def longrope(num_pairs: int) -> Config:
    """As Phi-3 has it; `original_max_position_embeddings` stands beside it."""
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [2.0 + pair for pair in range(num_pairs)],
    }


FAMILIES: dict[str, tuple[str, list[Config]]] = {
    "llama": (
        "LlamaForCausalLM",
        [
            {"rope_scaling": LLAMA3},
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
            {"rope_parameters": YARN | {"rope_theta": 500.0}, "attention_bias": True},
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "mlp_bias": True},
        ],
    ),
    "mistral": (
        "MistralForCausalLM",
        [{"sliding_window": 24}, {"sliding_window": None}, {"sliding_window": 5, "head_dim": 24}],
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        [
            {"tie_word_embeddings": True, "rope_theta": 1e6},
            {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
            {"rope_scaling": YARN_BY_HAND, "use_sliding_window": False, "sliding_window": 16},
        ],
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        [
            {"head_dim": 16},
            {"head_dim": 24, "rope_scaling": YARN_MSCALE, "tie_word_embeddings": True},
            {
                "head_dim": 8,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "num_hidden_layers": 3,
            },
        ],
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        [
            {"sliding_window": 16, "query_pre_attn_scalar": 24},
            {"sliding_window": 40, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
            {"sliding_window": 7, "attn_logit_softcapping": None, "num_hidden_layers": 3},
        ],
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        [
            {"sliding_window": 12, "sliding_window_pattern": 2, "rope_local_base_freq": 5000.0},
            {
                "sliding_window": 30,
                "rope_theta": 20000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "layer_types": ["full_attention", "sliding_attention"],
            },
            {
                "sliding_window": 6,
                "num_hidden_layers": 3,
                "sliding_window_pattern": 3,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 30000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
                },
            },
        ],
    ),
    "phi3": (
        "Phi3ForCausalLM",
        [
            {"sliding_window": 18},
            {
                "max_position_embeddings": 4 * CONTEXT_TOKENS,
                "original_max_position_embeddings": CONTEXT_TOKENS,
                "rope_scaling": longrope(4),
            },
            {
                "head_dim": 16,
                "hidden_size": 64,
                "partial_rotary_factor": 0.5,
                "max_position_embeddings": 2 * CONTEXT_TOKENS,
                "original_max_position_embeddings": CONTEXT_TOKENS,
                "rope_scaling": longrope(4),
                "sliding_window": 50,
                "tie_word_embeddings": True,
            },
        ],
    ),
    "mixtral": (
        "MixtralForCausalLM",
        [
            {"num_local_experts": 4, "num_experts_per_tok": 2},
            {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 20},
            {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_theta": 1e4},
        ],
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        [
            {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False},
            {
                "num_experts": 4,
                "num_experts_per_tok": 3,
                "norm_topk_prob": True,
                "decoder_sparse_step": 2,
                "num_hidden_layers": 3,
                "use_sliding_window": True,
                "sliding_window": 22,
                "max_window_layers": 2,
            },
            {
                "num_experts": 8,
                "num_experts_per_tok": 4,
                "mlp_only_layers": [0],
                "qkv_bias": False,
            },
        ],
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        [
            {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "head_dim": 16},
            {"num_experts": 4, "num_experts_per_tok": 4, "head_dim": 8, "mlp_only_layers": [1]},
            {
                "num_experts": 16,
                "num_experts_per_tok": 3,
                "head_dim": 8,
                "norm_topk_prob": True,
                "use_sliding_window": True,
                "sliding_window": 15,
            },
        ],
    ),
}
NAMES = [
    f"{family}-{number}" for family, (_, each) in FAMILIES.items() for number in range(len(each))
]


def config_of(name: str) -> Config:
    """The whole configuration of "family-number"; sizes that it does not fix are random."""
    family, number = name.split("-")
    architecture, variants = FAMILIES[family]
    draw = random.Random(name)
    num_kv_heads = draw.choice((1, 2, 4))
    config: Config = {
        "architectures": [architecture],
        "model_type": "gemma3_text" if family == "gemma3" else family,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": draw.choice((40, 48, 56)),
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": num_kv_heads,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": draw.choice((1e-5, 1e-6)),
        "rope_theta": draw.choice((1000.0, 10000.0)),
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    if family.startswith("gemma"):
        config |= {
            "head_dim": draw.choice((8, 16)),
            "query_pre_attn_scalar": draw.choice((8, 16, 20)),
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        }
    if family == "gemma2":
        config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if family.endswith("moe"):
        config |= {"moe_intermediate_size": draw.choice((16, 24)), "decoder_sparse_step": 1}
        config |= {"norm_topk_prob": False, "mlp_only_layers": []}
    if family == "qwen2_moe":
        config["shared_expert_intermediate_size"] = draw.choice((16, 40))
    config |= variants[int(number)]
    return {key: value for key, value in config.items() if value is not None or key != "rope_theta"}
