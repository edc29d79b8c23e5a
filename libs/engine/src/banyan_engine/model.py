"""The Llama decoder as the paper has it: norm, attention, norm, gated MLP, and a head.

It knows neither blocks nor batches nor modes. A layer is cut in two where keys and values leave
for the cache, so that the caller decides what is attended to: `project` gives q, k, v;
`finish` takes what attention made of them. Every row is one token and no row looks at another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.linear import Weight, linear
from banyan_engine.lora import LoraRows
from banyan_engine.spec import ModelSpec, RopeSpec
from banyan_engine.weights import ModelWeights


class Rotation(NamedTuple):
    """Cosines and sines of some positions, each [tokens, 1, head_dim]."""

    cos: Tensor
    sin: Tensor


class Model:
    """Weights with their mathematics. Rows are tokens: x is [tokens, hidden]."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        self.spec = spec
        self._weights = weights
        self._frequencies = rope_frequencies(spec.rope, spec.head_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, activations and KV; logits are always fp32."""
        return self._weights.norm.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """[tokens] to [tokens, hidden]."""
        return F.embedding(token_ids, self._weights.embedding)

    def rotation(self, positions: Tensor) -> Rotation:
        """Rotations of absolute positions [tokens]; computed in fp32, as angles need."""
        angles = positions.to(torch.float32)[:, None] * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return Rotation(angles.cos().to(self.dtype), angles.sin().to(self.dtype))

    def project(
        self, layer: int, x: Tensor, rotation: Rotation, lora: LoraRows | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] of one layer."""
        spec, weights = self.spec, self._weights.layers[layer]
        normed = self._norm(x, weights.attention_norm)
        qkv = _product(normed, weights.qkv, lora, layer, "qkv")
        qkv = qkv.view(len(x), -1, spec.head_dim)
        q, k, v = qkv.tensor_split((spec.num_heads, spec.num_heads + spec.num_kv_heads), dim=1)
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(
        self, layer: int, x: Tensor, attended: Tensor, lora: LoraRows | None = None
    ) -> Tensor:
        """The layer's output, from its input and from the attended values of each head."""
        weights = self._weights.layers[layer]
        x = x + _product(attended.flatten(1), weights.output, lora, layer, "output")
        normed = self._norm(x, weights.mlp_norm)
        gate, up = _product(normed, weights.gate_up, lora, layer, "gate_up").chunk(2, dim=-1)
        return x + _product(F.silu(gate) * up, weights.down, lora, layer, "down")

    def logits(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to fp32 [tokens, vocab]."""
        return linear(self._norm(x, self._weights.norm), self._weights.head).to(torch.float32)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.spec.rms_norm_eps)


def _product(x: Tensor, weight: Weight, lora: LoraRows | None, layer: int, name: str) -> Tensor:
    y = linear(x, weight)
    if lora is not None:
        lora.add(layer, name, x, y)
    return y


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (channel i, channel i + head_dim / 2) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return x * rotation.cos + torch.cat((-right, left), dim=-1) * rotation.sin


def rope_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """Radians per position of each channel pair, fp32 [head_dim / 2].

    `linear` stretches all wavelengths by the factor. `llama3` stretches those longer than the
    original context / low_freq_factor, keeps those shorter than context / high_freq_factor, and
    blends in between.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.type == "default":
        return frequencies
    stretched = frequencies / rope.factor
    if rope.type == "linear":
        return stretched
    turns = rope.original_context_tokens * frequencies / (2 * math.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(stretched, frequencies, blend.clamp(0.0, 1.0))
