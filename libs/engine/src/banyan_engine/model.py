"""One decoder for all families: norm, attention, norm, gated MLP or experts, and a head.

It reads the flags of its spec; no family has code of its own. It knows neither blocks nor batches
nor modes. A layer is cut in two where keys and values leave for the cache, so that the caller
decides what is attended to: `project` gives q, k, v; `finish` takes what attention made of them.
Every row is one token and no row looks at another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.experts import gated, mixture
from banyan_engine.linear import Weight, linear
from banyan_engine.lora import LoraRows, product
from banyan_engine.rope import Rotation, rope_frequencies, rotation
from banyan_engine.rowwise import add_norm, norm, split_heads
from banyan_engine.spec import ModelSpec
from banyan_engine.weights import LayerWeights, ModelWeights

_FIRST_ROTATIONS = 1024


class Model:
    """Weights with their mathematics. Rows are tokens: x is [tokens, hidden]."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        self.spec = spec
        self._weights = weights
        device = weights.norm.device
        self._frequencies = [rope_frequencies(rope).to(device) for rope in spec.ropes]
        # Rounded to the weights' type before it multiplies, as these models were trained.
        self.embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=self.dtype))
        self._all_rotations: tuple[Rotation, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations; logits are always fp32."""
        return self._weights.norm.dtype

    def layer(self, number: int) -> LayerWeights:
        """The weights of one layer, for who computes it in another way."""
        return self._weights.layers[number]

    @property
    def norm(self) -> Tensor:
        """The weight of the norm before the head."""
        return self._weights.norm

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden], before it is scaled."""
        return self._weights.embedding

    @property
    def head(self) -> Weight:
        """[vocab, hidden], for who computes it in another way."""
        return self._weights.head

    def embed(self, token_ids: Tensor) -> Tensor:
        """[tokens] to [tokens, hidden]."""
        x = F.embedding(token_ids, self._weights.embedding)
        return x if self.spec.embedding_scale == 1.0 else x * self.embedding_scale

    def rotations(self, positions: Tensor) -> tuple[Rotation, ...]:
        """Of absolute positions [tokens], by each of the model's ropes."""
        return tuple(
            rotation(rope, frequencies, positions, self.dtype)
            for rope, frequencies in zip(self.spec.ropes, self._frequencies, strict=True)
        )

    def all_rotations(self, num_positions: int) -> tuple[Rotation, ...]:
        """Of positions 0 to `num_positions` and some more, made once and kept."""
        kept = self._all_rotations
        if not kept or len(kept[0].cos) < num_positions:
            length = max(_FIRST_ROTATIONS, 1 << (num_positions - 1).bit_length())
            length = min(length, max(num_positions, self.spec.context_tokens))
            self._all_rotations = kept = self.rotations(torch.arange(length))
        return kept

    def project(
        self,
        layer: int,
        x: Tensor,
        rotations: tuple[Rotation, ...],
        lora: LoraRows | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] of one layer."""
        spec, weights = self.spec, self._weights.layers[layer]
        normed = self._norm(x, weights.attention_norm)
        qkv = product(normed, weights.qkv, weights.qkv_bias, lora, layer, "qkv")
        qkv = qkv.view(len(x), -1, spec.head_dim)
        norms = None
        if weights.q_norm is not None and weights.k_norm is not None:
            norms = weights.q_norm, weights.k_norm
        by, num_heads = rotations[spec.layers[layer].rope], (spec.num_heads, spec.num_kv_heads)
        return split_heads(qkv, num_heads, by, norms, spec.rms_norm_eps)

    def finish(
        self,
        layer: int,
        x: Tensor,
        attended: Tensor,
        lora: LoraRows | None = None,
        *,
        whole: bool = False,
    ) -> Tensor:
        """The layer's output, from its input and from the attended values of each head.

        `whole` asks for products whose shape is that of x, see `experts`.
        """
        weights = self._weights.layers[layer]
        values, bias = attended.flatten(1), weights.output_bias
        made = product(values, weights.output, bias, lora, layer, "output")
        made = self._norm_if(made, weights.attention_post_norm)
        x, normed = add_norm(x, made, weights.mlp_norm, self.spec.rms_norm_eps)
        shape, activation = self.spec.layers[layer].experts, self.spec.activation
        if shape is not None and weights.experts is not None:
            made = mixture(normed, shape, weights.experts, activation, whole=whole)
        else:
            assert weights.mlp is not None
            made = gated(normed, weights.mlp, activation, lora, layer)
        return x + self._norm_if(made, weights.mlp_post_norm)

    def logits(self, x: Tensor) -> Tensor:
        """[tokens, hidden] to fp32 [tokens, vocab]."""
        return self.capped(linear(self._norm(x, self._weights.norm), self._weights.head))

    def capped(self, logits: Tensor) -> Tensor:
        """What the head made, in fp32 and under the model's soft cap, if it has one."""
        logits, cap = logits.to(torch.float32), self.spec.logits_soft_cap
        return logits if cap is None else (logits / cap).tanh() * cap

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return norm(x, weight, self.spec.rms_norm_eps)

    def _norm_if(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._norm(x, weight)
