"""Fast mode: all tokens of a step, of chunks and of decodes alike, go flat through each layer.

Sums then depend on the shape of the batch in their last bits, so a token may come out
differently in another batch where two logits are nearly equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from banyan_core.runner import PlanItem
from banyan_engine.attention import PagedAttention
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv, Slots


def flat_forward(
    model: Model, kv: PagedKv, items: Sequence[PlanItem], on_layer: Callable[[int], None]
) -> Tensor:
    """Compute all items; fp32 logits [items that sample, vocab], in the order of the plan."""
    slots = _all_slots(kv, items)
    attention = PagedAttention(kv, items, model.dtype)
    rotation = model.rotation(
        torch.cat([torch.arange(item.start, item.start + len(item.token_ids)) for item in items])
    )
    x = model.embed(torch.tensor([token for item in items for token in item.token_ids]))
    last_layer = model.spec.num_layers - 1
    for layer in range(model.spec.num_layers):
        q, k, v = model.project(layer, x, rotation)
        kv.write(layer, slots, k, v)
        on_layer(layer)
        if layer == last_layer:
            # All KV is written: from here on only the rows that sample are of use.
            rows = _sampled_rows(items)
            x, q = x[rows], q[rows]
            attention = PagedAttention(kv, _last_tokens(items), model.dtype)
        x = model.finish(layer, x, attention.attend(layer, q))
    return model.logits(x)


def _all_slots(kv: PagedKv, items: Sequence[PlanItem]) -> Slots:
    parts = [kv.slots(item.start, len(item.token_ids), item.block_table) for item in items]
    return Slots(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _last_tokens(items: Sequence[PlanItem]) -> list[PlanItem]:
    """The items that sample, cut down to the one token whose logits are wanted."""
    return [
        replace(
            item,
            token_ids=item.token_ids[-1:],
            start=item.start + len(item.token_ids) - 1,
        )
        for item in items
        if item.sample
    ]


def _sampled_rows(items: Sequence[PlanItem]) -> Tensor:
    rows, row = [], 0
    for item in items:
        row += len(item.token_ids)
        if item.sample:
            rows.append(row - 1)
    return torch.tensor(rows, dtype=torch.int64)
