"""Rotary embeddings, out of both spellings of a model's configuration.

transformers 5 writes `rope_parameters`, before that it was `rope_theta` and `rope_scaling`. A key
in there that is not known here would be ignored and the model be wrong, so it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from banyan_core.config_fields import ConfigFields
from banyan_core.model_spec import ModelError, RopeSpec

_COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"
_YARN_KEYS = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (_ORIGINAL,),
    "linear": ("factor",),
    # Differs from the default only past the context for which the model is served at most.
    "dynamic": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", "attention_factor", _ORIGINAL, *_YARN_KEYS),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor", _ORIGINAL),
}
"""What each type reads, besides what all do."""


def rope_scaling(config: ConfigFields) -> ConfigFields:
    """The object that holds the scaling, under whichever name."""
    return config.inner("rope_parameters" if config.get("rope_parameters") else "rope_scaling")


def _rope_type(scaling: ConfigFields, aliases: Mapping[str, str]) -> str:
    """Raises ModelError for a type that is not known."""
    named = scaling.get("rope_type", scaling.get("type", "default"))
    named = aliases.get(str(named), named)
    if named not in ROPE_KEYS:
        raise scaling.error("rope_type", named, f"one of {', '.join(ROPE_KEYS)}")
    return str(named)


def parse_rope(
    config: ConfigFields,
    scaling: ConfigFields,
    head_dim: int,
    default_theta: float,
    aliases: Mapping[str, str],
) -> RopeSpec:
    """One rope. `scaling` may be a part of the configuration that holds for some layers only."""
    kind = _rope_type(scaling, aliases)
    for name in sorted(scaling.values):
        if name not in _COMMON_KEYS and name not in ROPE_KEYS[kind]:
            raise scaling.error(name, scaling.values[name], f"no such field for rope type {kind}")
    theta = scaling.number("rope_theta", config.number("rope_theta", default_theta))
    share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    num_dims = int(head_dim * share)
    if num_dims % 2 or not 0 < num_dims <= head_dim:
        raise scaling.error("partial_rotary_factor", share, f"an even share of {head_dim} channels")
    if kind in ("default", "dynamic"):
        return RopeSpec(num_dims, theta)
    if kind == "linear":
        return RopeSpec(num_dims, theta, kind, scaling.number("factor"))
    original = _original_context(config, scaling)
    if kind == "llama3":
        return _llama3(scaling, num_dims, theta, original)
    if kind == "yarn":
        return _yarn(scaling, num_dims, theta, original)
    return _longrope(config, scaling, num_dims, theta, original)


def _original_context(config: ConfigFields, scaling: ConfigFields) -> int:
    """The context before it was stretched; beside the scaling, in it, or the context itself."""
    context = config.integer("max_position_embeddings")
    return config.integer(_ORIGINAL, scaling.integer(_ORIGINAL, context))


def _llama3(scaling: ConfigFields, num_dims: int, theta: float, original: int) -> RopeSpec:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        raise scaling.error("high_freq_factor", high, f"more than {low}")
    return RopeSpec(num_dims, theta, "llama3", scaling.number("factor"), low, high, original)


def _yarn(scaling: ConfigFields, num_dims: int, theta: float, original: int) -> RopeSpec:
    factor = scaling.number("factor")
    scale = scaling.number_or_none("attention_factor")
    if scale is None:
        mscale, of_all = scaling.number_or_none("mscale"), scaling.number_or_none("mscale_all_dim")
        if mscale and of_all:
            scale = _yarn_scale(factor, mscale) / _yarn_scale(factor, of_all)
        else:
            scale = _yarn_scale(factor, 1.0)
    return RopeSpec(
        num_dims,
        theta,
        "yarn",
        factor,
        original_context_tokens=original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
        scale=scale,
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(
    config: ConfigFields, scaling: ConfigFields, num_dims: int, theta: float, original: int
) -> RopeSpec:
    """The short factors: see `model_config` for why the long ones are not used."""
    factors = scaling.items("short_factor")
    if len(factors) != num_dims // 2:
        raise scaling.error("short_factor", factors, f"a list of {num_dims // 2} numbers")
    numbers = [each for each in factors if isinstance(each, int | float) and each > 0]
    if len(numbers) != len(factors):
        raise ModelError(f"{scaling.place}: short_factor: expected positive numbers")
    factor = scaling.number("factor", config.integer("max_position_embeddings") / original)
    scale = scaling.number_or_none("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeSpec(
        num_dims,
        theta,
        "longrope",
        original_context_tokens=original,
        factors=tuple(map(float, numbers)),
        scale=scale,
    )
