"""Fast mode: all tokens of a step, of chunks and of decodes alike, go flat through each layer.

Sums then depend on the shape of the batch in their last bits, so a token may come out
differently in another batch where two logits are nearly equal.

Spans are on the host. What is made of them goes to the pool's device here, once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from banyan_engine.attention import step_attention
from banyan_engine.kernels import native
from banyan_engine.lora import lora_rows
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv, Slots
from banyan_engine.spans import Span, sampled_parts
from banyan_engine.whole_layers import whole_layers


def flat_forward(
    model: Model, kv: PagedKv, spans: Sequence[Span], on_layer: Callable[[int], None]
) -> Tensor:
    """Compute all spans; fp32 logits [sum of num_sampled, vocab], in the order of the spans."""
    inputs = kv.inputs.fill(spans)
    whole = whole_layers(model, kv, spans)
    helper = None if whole is None else native.library()
    if whole is not None and helper is not None:
        logits = whole.logits(inputs, spans, helper)
        for layer in range(model.spec.num_layers):
            on_layer(layer)
        return model.capped(logits)
    slots = Slots(inputs.slot_ids.to(kv.device), inputs.fresh_block_ids.to(kv.device))
    rotations = model.rotations(inputs.positions.to(kv.device))
    x = model.embed(inputs.token_ids.to(kv.device))
    attention = step_attention(model.spec, kv, spans, model.dtype)
    lora = lora_rows([(span.adapter, span.num_tokens) for span in spans], kv.device)
    all_sample = len(inputs.sampled_rows) == len(inputs.token_ids)
    last_layer = model.spec.num_layers - 1
    for layer in range(model.spec.num_layers):
        q, k, v = model.project(layer, x, rotations, lora)
        kv.write(layer, slots, k, v)
        on_layer(layer)
        if layer == last_layer and not all_sample:
            # All KV is written: from here on only the rows that sample are of use.
            rows = inputs.sampled_rows.to(kv.device)
            x, q = x[rows], q[rows]
            attention = step_attention(model.spec, kv, sampled_parts(spans), model.dtype)
            lora = lora_rows([(span.adapter, span.num_sampled) for span in spans], kv.device)
        x = model.finish(layer, x, attention.attend(layer, q), lora)
    return model.logits(x)
