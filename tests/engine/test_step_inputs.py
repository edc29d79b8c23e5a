"""Inputs of a step in buffers that stay: the numbers that are made anew for each span, in place."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from banyan_core.types import equal_layers
from banyan_engine.paged_kv import PagedKv
from banyan_engine.spans import Span

NUM_BLOCKS, BLOCK_SIZE = 12, 4


def pool() -> PagedKv:
    return PagedKv(equal_layers(1, 1, 8, "float32"), NUM_BLOCKS, BLOCK_SIZE)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    num_blocks = draw(st.integers(1, NUM_BLOCKS))
    table = draw(st.permutations(range(NUM_BLOCKS)))[:num_blocks]
    end = draw(st.integers(1, num_blocks * BLOCK_SIZE))
    num_tokens = draw(st.sampled_from((1, draw(st.integers(1, end)))))
    token_ids = torch.tensor(draw(st.lists(st.integers(0, 99), min_size=num_tokens))[:num_tokens])
    sampled = draw(st.integers(0, num_tokens))
    return Span(token_ids, end - num_tokens, torch.tensor(table), sampled)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.lists(spans(), min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_numbers_are_those_of_each_span_whatever_was_there_before(
    steps: list[list[Span]],
) -> None:
    kv = pool()
    for step in steps:
        filled = kv.inputs.fill(step)
        slots = [kv.slots(span.start, span.num_tokens, span.block_table) for span in step]
        positions = [torch.arange(span.start, span.end) for span in step]
        ends = torch.tensor([span.num_tokens for span in step]).cumsum(0).tolist()
        rows = [
            row
            for span, end in zip(step, ends, strict=True)
            for row in range(end - span.num_sampled, end)
        ]
        assert torch.equal(filled.token_ids, torch.cat([span.token_ids for span in step]))
        assert torch.equal(filled.positions, torch.cat(positions))
        assert torch.equal(filled.slot_ids, torch.cat([each.slot_ids for each in slots]))
        begun = torch.cat([each.fresh_block_ids for each in slots])
        assert torch.equal(filled.fresh_block_ids, begun)
        assert filled.sampled_rows.tolist() == rows


def test_the_buffers_stay_until_a_step_is_too_large() -> None:
    kv = PagedKv(equal_layers(1, 1, 8, "float32"), 500, BLOCK_SIZE)
    table = torch.arange(500)

    def addresses(num_tokens: int) -> list[int]:
        filled = kv.inputs.fill([Span(torch.zeros(num_tokens, dtype=torch.int64), 0, table, 1)])
        return [part.data_ptr() for part in filled]

    assert addresses(1) == addresses(400) == addresses(2)
    larger = addresses(600)
    assert larger == addresses(1200) == addresses(1)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("table", [(0,), (0, NUM_BLOCKS), (0, -1)])
def test_tables_that_are_too_short_or_lead_outside_are_refused(
    table: tuple[int, ...], num_tokens: int
) -> None:
    span = Span(torch.zeros(num_tokens, dtype=torch.int64), 4, torch.tensor(table), 1)
    with pytest.raises(ValueError, match="block_table: no block of this pool for positions 4 to"):
        pool().inputs.fill([span])
