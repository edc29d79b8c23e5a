"""Decode steps on a GPU as CUDA graphs: one launch for a step instead of hundreds.

A graph replays the same kernels on the same addresses, so a step is written as a function of
buffers that stay (`DecodeInputs`), for batches of a few sizes; a batch is padded with copies of
its first row, which compute and write what that row does. All sizes are captured when the engine
starts: no other thread uses the device yet, and nothing is captured or compiled while serving.

`decode_forward` is plain torch and runs anywhere; only `DecodeGraphs` needs a CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from banyan_engine.flat_forward import flat_forward
from banyan_engine.model import Model
from banyan_engine.paged_flex import attend_tiles, lay_tiles, padded_tiles, table_width, tables_of
from banyan_engine.paged_kv import PagedKv, Slots
from banyan_engine.spans import Span

MAX_SEQUENCES = 64
"""Of the largest graph, a power of two; more go without."""
_WARM_UPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class DecodeInputs:
    """One token each of some sequences, int64 [sequences], `tables` [sequences, width].

    `fresh_block_ids` are the blocks that the tokens begin, then the zero block as padding.
    """

    token_ids: Tensor
    positions: Tensor
    slot_ids: Tensor
    fresh_block_ids: Tensor
    tables: Tensor

    def copy_(self, other: DecodeInputs) -> None:
        """Take the other's numbers, in place."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))


def decode_inputs(model: Model, kv: PagedKv, spans: Sequence[Span]) -> DecodeInputs:
    """Of single tokens, padded to a power of two."""
    num_padding = padded_tiles(len(spans)) - len(spans)
    padded = [*spans, *[spans[0]] * num_padding]
    filled = kv.inputs.fill(padded)
    fresh = torch.full((len(padded),), kv.zero_block_id)
    fresh[: len(filled.fresh_block_ids)] = filled.fresh_block_ids
    return DecodeInputs(
        token_ids=filled.token_ids.to(kv.device, copy=True),
        positions=filled.positions.to(kv.device, copy=True),
        slot_ids=filled.slot_ids.to(kv.device, copy=True),
        fresh_block_ids=fresh.to(kv.device),
        tables=tables_of(kv, padded, table_width(model.spec, kv)),
    )


def decode_forward(model: Model, kv: PagedKv, inputs: DecodeInputs) -> Tensor:
    """fp32 logits [sequences, vocab]. Nothing here looks at a number or at the host."""
    spec = model.spec
    tiles = lay_tiles(kv, inputs.tables, inputs.positions, 1)
    slots = Slots(inputs.slot_ids, inputs.fresh_block_ids)
    rotations = model.rotations(inputs.positions)
    x = model.embed(inputs.token_ids)
    for layer in range(spec.num_layers):
        q, k, v = model.project(layer, x, rotations)
        kv.write(layer, slots, k, v)
        x = model.finish(layer, x, attend_tiles(spec, kv, layer, q, tiles))
    return model.logits(x)


def is_plain_decode(spans: Sequence[Span]) -> bool:
    """Whether a graph can do it: one sampled token each, no adapters, not too many."""
    return len(spans) <= MAX_SEQUENCES and all(
        span.num_tokens == 1 and span.num_sampled == 1 and span.adapter is None for span in spans
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    inputs: DecodeInputs
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class DecodeGraphs:
    """A forward pass that replays graphs where it can and else goes flat.

    Experts choose on the host how many rows each gets, so a model that has them has no graphs.
    """

    def __init__(self, model: Model, kv: PagedKv) -> None:
        self._captured: dict[int, _Captured] = {}
        if any(layer.experts is not None for layer in model.spec.layers):
            return
        pool: Any = torch.cuda.graph_pool_handle()
        with torch.cuda.device(kv.device), torch.inference_mode():
            size = MAX_SEQUENCES
            while size:  # the largest first: the others fit into its memory
                self._captured[size] = _capture(model, kv, size, pool)
                size //= 2

    def __call__(
        self, model: Model, kv: PagedKv, spans: Sequence[Span], on_layer: Callable[[int], None]
    ) -> Tensor:
        """As `flat_forward`, for the model and the pool that the graphs were made of."""
        captured = self._captured.get(padded_tiles(len(spans)))
        if captured is None or not is_plain_decode(spans):
            return flat_forward(model, kv, spans, on_layer)
        captured.inputs.copy_(decode_inputs(model, kv, spans))
        captured.graph.replay()
        # Readers of a page queue behind the graph, on the same stream.
        for layer in range(model.spec.num_layers):
            on_layer(layer)
        return captured.logits[: len(spans)]


def _capture(model: Model, kv: PagedKv, size: int, pool: Any) -> _Captured:
    """On an idle pool: what it writes into block 0 is cleared when a sequence begins that."""
    span = Span(torch.zeros(1, dtype=torch.int64), 0, torch.zeros(1, dtype=torch.int64), 1)
    inputs = decode_inputs(model, kv, [span] * size)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            decode_forward(model, kv, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        logits = decode_forward(model, kv, inputs)
    return _Captured(inputs, graph, logits)
