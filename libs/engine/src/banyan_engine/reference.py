"""The whole model without cache, blocks or batch: one sequence, dense attention, all positions.

Nothing serves with it. It is short enough to be believed, and so it judges what serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from banyan_engine.attention import attend_dense
from banyan_engine.lora import LoraWeights, lora_of_all
from banyan_engine.model import Model


@torch.inference_mode()
def reference_logits(
    model: Model, token_ids: Sequence[int], adapter: LoraWeights | None = None
) -> Tensor:
    """fp32 logits [tokens, vocab] of every position of one sequence."""
    spec, rotations = model.spec, model.rotations(torch.arange(len(token_ids)))
    lora = lora_of_all(adapter)
    x = model.embed(torch.tensor(token_ids))
    for layer in range(spec.num_layers):
        q, k, v = model.project(layer, x, rotations, lora)
        window = spec.layers[layer].window
        attended = attend_dense(q, k, v, spec.attention_scale, window, spec.attention_soft_cap)
        x = model.finish(layer, x, attended, lora)
    return model.logits(x)
