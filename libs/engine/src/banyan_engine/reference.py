"""The whole model without cache, blocks or batch: one sequence, dense attention, all positions.

Nothing serves with it. It is short enough to be believed, and so it judges what serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from banyan_engine.attention import attend_dense
from banyan_engine.model import Model


@torch.inference_mode()
def reference_logits(model: Model, token_ids: Sequence[int]) -> Tensor:
    """fp32 logits [tokens, vocab] of every position of one sequence."""
    rotation = model.rotation(torch.arange(len(token_ids)))
    x = model.embed(torch.tensor(token_ids))
    for layer in range(model.spec.num_layers):
        q, k, v = model.project(layer, x, rotation)
        x = model.finish(layer, x, attend_dense(q, k, v))
    return model.logits(x)
