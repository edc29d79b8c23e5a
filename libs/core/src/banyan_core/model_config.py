"""From a `config.json` to a `ModelSpec`: the families as rows of data.

A value that the decoder would silently ignore must not get past this file, so whatever changes
the mathematics is either understood here or refused by name.

Two scalings of rope depend on a sequence's length as it is while it grows (`dynamic`, and the
second half of `longrope`). K of a token would then depend on tokens that come later, and a cached
block be wrong as soon as its sequence is long enough. Such models are served up to the length
where that begins, and are exact up to there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from banyan_core.config_fields import ConfigFields
from banyan_core.model_spec import (
    ExpertsSpec,
    LayerSpec,
    ModelError,
    ModelSpec,
    RopeSpec,
    TensorNames,
)
from banyan_core.packing_config import parse_packing
from banyan_core.rope_config import parse_rope, rope_scaling

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture means beyond the sizes in its configuration.

    `windows` names the layers that see a window when the configuration has no `layer_types`:
    "none", "all", "last" (from `max_window_layers` on), "first" (odd ones before it), or
    "pattern" (all but each n-th).
    """

    windows: str = "none"
    window_pattern: int = 0
    window_flag: bool = False  # a window counts only with `use_sliding_window`
    reads_layer_types: bool = False
    local_rope: bool = False  # layers with a window have a rope of their own
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    partial_rope: bool = False  # a part of each head's channels may stay as they are
    default_theta: float = 10_000.0
    names: TensorNames = field(default_factory=TensorNames)
    num_experts: str = ""  # the field with their number, in families that have experts
    qkv_bias: str = "attention_bias"  # the field, or "always", "never"
    output_bias: str = "attention_bias"
    mlp_bias: bool = False  # may be asked for
    qk_norms: bool = False
    gemma: bool = False  # scaled embeddings, norms of 1 + w, norms after, a last soft cap, gelu
    attention_soft_cap: bool = False


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(mlp_bias=True),
    "MistralForCausalLM": Family(windows="all", qkv_bias="never", output_bias="never"),
    "Qwen2ForCausalLM": Family(
        windows="last",
        window_flag=True,
        reads_layer_types=True,
        qkv_bias="always",
        output_bias="never",
    ),
    "Qwen3ForCausalLM": Family(
        windows="last", window_flag=True, reads_layer_types=True, qk_norms=True
    ),
    "Gemma2ForCausalLM": Family(
        gemma=True,
        windows="pattern",
        window_pattern=2,
        reads_layer_types=True,
        attention_soft_cap=True,
    ),
    "Gemma3ForCausalLM": Family(
        gemma=True,
        windows="pattern",
        window_pattern=6,
        reads_layer_types=True,
        local_rope=True,
        qk_norms=True,
        default_theta=1_000_000.0,
    ),
    "Phi3ForCausalLM": Family(
        windows="all",
        qkv_bias="never",
        output_bias="never",
        partial_rope=True,
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        names=TensorNames(fused_qkv=True),
    ),
    "MixtralForCausalLM": Family(
        windows="all",
        qkv_bias="never",
        output_bias="never",
        default_theta=1_000_000.0,
        num_experts="num_local_experts",
        names=TensorNames(experts="block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    "Qwen2MoeForCausalLM": Family(
        windows="first",
        window_flag=True,
        reads_layer_types=True,
        qkv_bias="qkv_bias",
        output_bias="never",
        num_experts="num_experts",
    ),
    "Qwen3MoeForCausalLM": Family(
        windows="all", window_flag=True, qk_norms=True, num_experts="num_experts"
    ),
}


def parse_config(values: Mapping[str, object], end_token_ids: tuple[int, ...] = ()) -> ModelSpec:
    """The spec of a model whose `config.json` says `values`. Raises ModelError."""
    config = ConfigFields(values)
    architecture, family = _known_family(config)
    _refuse_unknown_mathematics(config, family)
    hidden_size = config.integer("hidden_size")
    num_heads, num_kv_heads, head_dim = _heads(config, hidden_size)
    windows = _windows(config, family)
    ropes = _ropes(config, family, head_dim)
    query_scalar = config.number("query_pre_attn_scalar") if family.gemma else float(head_dim)
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps"),
        layers=tuple(
            LayerSpec(
                window=window,
                rope=int(family.local_rope and window is not None),
                experts=_experts(config, family, index),
            )
            for index, window in enumerate(windows)
        ),
        ropes=ropes,
        tied_embeddings=config.flag("tie_word_embeddings", family.gemma),
        context_tokens=_context_tokens(config, ropes),
        end_token_ids=end_token_ids,
        attention_scale=query_scalar**-0.5,
        activation=_activation(config, family),
        attention_soft_cap=config.number_or_none("attn_logit_softcapping"),
        logits_soft_cap=config.number_or_none("final_logit_softcapping"),
        embedding_scale=hidden_size**0.5 if family.gemma else 1.0,
        norm_offset=float(family.gemma),
        post_norms=family.gemma,
        qk_norms=family.qk_norms,
        qkv_bias=_bias(config, family.qkv_bias),
        output_bias=_bias(config, family.output_bias),
        mlp_bias=config.flag("mlp_bias", False),
        names=family.names,
        packing=parse_packing(config),
    )


def _known_family(config: ConfigFields) -> tuple[str, Family]:
    named = config.get("architectures")
    for known, family in FAMILIES.items():
        if named == [known]:
            return known, family
    raise config.error("architectures", named, f"a list of one of {', '.join(FAMILIES)}")


def _refuse_unknown_mathematics(config: ConfigFields, family: Family) -> None:
    """Name the first field whose value would need code that is not there."""
    unset = []
    if not family.gemma:
        unset.append("final_logit_softcapping")
    if not family.attention_soft_cap:
        unset.append("attn_logit_softcapping")
    for name in unset:
        if config.get(name) is not None:
            raise ModelError(f"config.json: {name}: is set, expected null or no such field")
    refused = ["use_bidirectional_attention"]
    if not family.mlp_bias:
        refused.append("mlp_bias")
    if "attention_bias" not in (family.qkv_bias, family.output_bias):
        refused.append("attention_bias")
    for name in refused:
        if config.flag(name, False):
            raise config.error(name, True, "false")


def _activation(config: ConfigFields, family: Family) -> str:
    name = "hidden_activation" if family.gemma else "hidden_act"
    found = config.get(name, "gelu_pytorch_tanh" if family.gemma else "silu")
    if found not in ACTIVATIONS:
        raise config.error(name, found, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(found)]


def _heads(config: ConfigFields, hidden_size: int) -> tuple[int, int, int]:
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.error(
            "num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads {num_heads}"
        )
    head_dim = config.integer("head_dim", hidden_size // num_heads, minimum=0)
    if head_dim % 2 or not head_dim:
        raise config.error("head_dim", head_dim, "an even number")
    return num_heads, num_kv_heads, head_dim


def _bias(config: ConfigFields, rule: str) -> bool:
    if rule in ("always", "never"):
        return rule == "always"
    return config.flag(rule, rule == "qkv_bias")


def _windows(config: ConfigFields, family: Family) -> list[int | None]:
    """Of each layer: how many tokens it sees, None for all."""
    num_layers = config.integer("num_hidden_layers")
    is_off = config.get("sliding_window") is None or (
        family.window_flag and not config.flag("use_sliding_window", False)
    )
    if family.windows == "none" and not is_off:
        raise config.error("sliding_window", config.get("sliding_window"), "null")
    types = config.items("layer_types")
    if types and len(types) != num_layers:
        raise config.error("layer_types", types, f"{num_layers} of them")
    by_types = [_is_sliding(config, each) for each in types]
    if types and family.reads_layer_types:
        sliding = by_types
    else:
        sliding = [not is_off and _has_window(config, family, i) for i in range(num_layers)]
        if types and by_types != sliding:
            raise config.error("layer_types", types, "what sliding_window says for all layers")
    if any(sliding) and is_off:
        raise config.error("sliding_window", None, "a positive integer for sliding layers")
    return [config.integer("sliding_window") if each else None for each in sliding]


def _has_window(config: ConfigFields, family: Family, index: int) -> bool:
    if family.windows == "last":
        return index >= config.integer("max_window_layers", minimum=0)
    if family.windows == "first":
        return index % 2 == 0 and index < config.integer("max_window_layers", minimum=0)
    if family.windows == "pattern":
        return (index + 1) % config.integer("sliding_window_pattern", family.window_pattern) != 0
    return family.windows == "all"


def _is_sliding(config: ConfigFields, layer_type: object) -> bool:
    if layer_type not in ("sliding_attention", "full_attention"):
        raise config.error("layer_types", layer_type, "sliding_attention or full_attention")
    return layer_type == "sliding_attention"


def _ropes(config: ConfigFields, family: Family, head_dim: int) -> tuple[RopeSpec, ...]:
    scaling, theta = rope_scaling(config), family.default_theta
    if not family.local_rope:
        rope = parse_rope(config, scaling, head_dim, theta, family.rope_aliases)
        if rope.num_dims != head_dim and not family.partial_rope:
            raise config.error("partial_rotary_factor", rope.num_dims / head_dim, "1")
        return (rope,)
    local_theta = config.number("rope_local_base_freq", 10_000.0)
    whole, local = scaling, ConfigFields({"rope_theta": local_theta})
    if "full_attention" in scaling.values or "sliding_attention" in scaling.values:
        whole = scaling.inner("full_attention")
        found = scaling.inner("sliding_attention")
        local = ConfigFields({"rope_theta": local_theta, **found.values}, found.place)
    return (
        parse_rope(config, whole, head_dim, theta, {}),
        parse_rope(config, local, head_dim, local_theta, {}),
    )


def _context_tokens(config: ConfigFields, ropes: tuple[RopeSpec, ...]) -> int:
    bounds = [rope.original_context_tokens for rope in ropes if rope.type == "longrope"]
    return min([config.integer("max_position_embeddings"), *bounds])


def _experts(config: ConfigFields, family: Family, index: int) -> ExpertsSpec | None:
    if not family.num_experts:
        return None
    if family.num_experts == "num_local_experts":
        size, renormalise, shared = config.integer("intermediate_size"), True, 0
    else:
        if index in config.items("mlp_only_layers"):
            return None
        if (index + 1) % config.integer("decoder_sparse_step", 1):
            return None
        size = config.integer("moe_intermediate_size")
        renormalise = config.flag("norm_topk_prob", False)
        shared = 0 if family.qk_norms else config.integer("shared_expert_intermediate_size")
    num_experts = config.integer(family.num_experts)
    num_chosen = config.integer("num_experts_per_tok")
    if num_chosen > num_experts:
        raise config.error("num_experts_per_tok", num_chosen, f"at most {num_experts}")
    return ExpertsSpec(num_experts, num_chosen, size, renormalise, shared)
