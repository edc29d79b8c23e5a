"""Rotary embeddings: the angles of positions, and the turning of q and k by them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from banyan_core.model_spec import RopeSpec


class Rotation(NamedTuple):
    """Cosines and sines of some positions, each [tokens, 1, channels that turn]."""

    cos: Tensor
    sin: Tensor


def rotation(
    rope: RopeSpec, frequencies: Tensor, positions: Tensor, dtype: torch.dtype
) -> Rotation:
    """Of absolute positions [tokens]; computed in fp32, as angles need."""
    angles = positions.to(torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return Rotation((angles.cos() * rope.scale).to(dtype), (angles.sin() * rope.scale).to(dtype))


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (channel i, channel i + half) by its angle; channels past those stay."""
    num_dims = by.cos.shape[-1]
    turning, still = x[..., :num_dims], x[..., num_dims:]
    left, right = turning.chunk(2, dim=-1)
    turned = turning * by.cos + torch.cat((-right, left), dim=-1) * by.sin
    return turned if num_dims == x.shape[-1] else torch.cat((turned, still), dim=-1)


def rope_frequencies(rope: RopeSpec) -> Tensor:
    """Radians per position of each channel pair, fp32 [num_dims / 2]."""
    exponents = torch.arange(0, rope.num_dims, 2, dtype=torch.float32) / rope.num_dims
    wavelengths = rope.theta**exponents
    if rope.type == "linear":
        return 1.0 / wavelengths / rope.factor
    if rope.type == "llama3":
        return _llama3(rope, 1.0 / wavelengths)
    if rope.type == "yarn":
        return _yarn(rope, wavelengths)
    if rope.type == "longrope":
        return 1.0 / (torch.tensor(rope.factors) * wavelengths)
    return 1.0 / wavelengths


def _llama3(rope: RopeSpec, frequencies: Tensor) -> Tensor:
    """Stretch wavelengths longer than the original context / low_freq_factor by the factor.

    Those shorter than context / high_freq_factor stay; in between it blends.
    """
    turns = rope.original_context_tokens * frequencies / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(frequencies / rope.factor, frequencies, blend.clamp(0.0, 1.0))


def _yarn(rope: RopeSpec, wavelengths: Tensor) -> Tensor:
    """Keep pairs that turn more than beta_fast times in the original context.

    Those below beta_slow turns are stretched by the factor; in between it blends, by the pair's
    number.
    """

    def pair_of(num_turns: float) -> float:
        turns = rope.original_context_tokens / (num_turns * 2 * math.pi)
        return rope.num_dims * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.num_dims - 1)
    width = high - low if high != low else 0.001
    stretch = ((torch.arange(rope.num_dims // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return (1.0 / (rope.factor * wavelengths)) * stretch + (1.0 / wavelengths) * (1 - stretch)
