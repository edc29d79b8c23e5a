"""Fast mode: all tokens of a step, of chunks and of decodes alike, go flat through each layer.

Sums then depend on the shape of the batch in their last bits, so a token may come out
differently in another batch where two logits are nearly equal.

Spans are on the host. What is made of them goes to the pool's device here, once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from banyan_engine.attention import step_attention
from banyan_engine.lora import lora_rows
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv, Slots
from banyan_engine.spans import Span, sampled_parts


def flat_forward(
    model: Model, kv: PagedKv, spans: Sequence[Span], on_layer: Callable[[int], None]
) -> Tensor:
    """Compute all spans; fp32 logits [sum of num_sampled, vocab], in the order of the spans."""
    slots = _all_slots(kv, spans)
    attention = step_attention(model.spec, kv, spans, model.dtype)
    positions = torch.cat([torch.arange(span.start, span.end) for span in spans])
    rotations = model.rotations(positions.to(kv.device))
    x = model.embed(torch.cat([span.token_ids for span in spans]).to(kv.device))
    lora = lora_rows([(span.adapter, span.num_tokens) for span in spans], kv.device)
    last_layer = model.spec.num_layers - 1
    for layer in range(model.spec.num_layers):
        q, k, v = model.project(layer, x, rotations, lora)
        kv.write(layer, slots, k, v)
        on_layer(layer)
        if layer == last_layer:
            # All KV is written: from here on only the rows that sample are of use.
            rows = _sampled_rows(spans).to(kv.device)
            x, q = x[rows], q[rows]
            attention = step_attention(model.spec, kv, sampled_parts(spans), model.dtype)
            lora = lora_rows([(span.adapter, span.num_sampled) for span in spans], kv.device)
        x = model.finish(layer, x, attention.attend(layer, q), lora)
    return model.logits(x)


def _all_slots(kv: PagedKv, spans: Sequence[Span]) -> Slots:
    parts = [kv.slots(span.start, span.num_tokens, span.block_table) for span in spans]
    return Slots(*(torch.cat(columns).to(kv.device) for columns in zip(*parts, strict=True)))


def _sampled_rows(spans: Sequence[Span]) -> Tensor:
    rows: list[int] = []
    end = 0
    for span in spans:
        end += span.num_tokens
        rows += range(end - span.num_sampled, end)
    return torch.tensor(rows, dtype=torch.int64)
