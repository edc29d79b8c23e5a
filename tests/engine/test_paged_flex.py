"""The attention of a GPU, computed on the CPU by the same functions: masks, blocks, tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention

from banyan_core.model_spec import kv_layout
from banyan_core.types import KvLayer, KvLayout
from banyan_engine import tiny_families
from banyan_engine.attention import attend_dense
from banyan_engine.decode_graphs import decode_forward, decode_inputs
from banyan_engine.flat_forward import flat_forward
from banyan_engine.model import Model
from banyan_engine.paged_flex import CHUNK_ROWS, FlexAttention, lay_tiles, tables_of
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_model import write_random_model
from banyan_engine.spans import Span
from banyan_engine.spec import ModelSpec, read_spec
from banyan_engine.weights import load_weights

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 2, 8, 4
BLOCKS_EACH, CONTEXT_TOKENS = 40, 160
SCALE = 0.3


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it torch compiles a wrapper for each call, which takes seconds."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def spec(model_folder: Callable[..., Path]) -> ModelSpec:
    read = read_spec(model_folder())
    return replace(read, attention_scale=SCALE, context_tokens=CONTEXT_TOKENS)


def rows(num_tokens: int, num_heads: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_heads, HEAD_DIM, generator=generator)


def span(number: int, start: int, end: int) -> Span:
    first = number * BLOCKS_EACH
    blocks = [*range(first + BLOCKS_EACH - 1, first, -2), *range(first, first + BLOCKS_EACH, 2)]
    return Span(torch.ones(end - start, dtype=torch.int64), start, torch.tensor(blocks), 1)


def pool(num_spans: int, *windows: int | None) -> PagedKv:
    layers = tuple(KvLayer(NUM_KV_HEADS, HEAD_DIM, HEAD_DIM, window) for window in windows)
    return PagedKv(KvLayout(layers, "float32"), BLOCKS_EACH * num_spans, BLOCK_SIZE)


@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize("window, soft_cap", [(None, None), (1, None), (7, 1.5), (64, None)])
@pytest.mark.parametrize(
    "bounds",
    [
        [(0, 1)],
        [(0, CHUNK_ROWS), (3, CHUNK_ROWS + 4)],
        [(0, 33), (12, 20), (63, 64), (0, 1), (31, 32), (13, 160)],
    ],
)
def test_it_agrees_with_the_reference(
    spec: ModelSpec,
    num_heads: int,
    window: int | None,
    soft_cap: float | None,
    bounds: list[tuple[int, int]],
) -> None:
    kv = pool(len(bounds), window)
    spans = [span(number, start, end) for number, (start, end) in enumerate(bounds)]
    wanted, queries = [], []
    for number, (start, end) in enumerate(bounds):
        k, v = rows(end, NUM_KV_HEADS, 2 * number), rows(end, NUM_KV_HEADS, 2 * number + 1)
        kv.write(0, kv.slots(0, end, spans[number].block_table), k, v)
        queries.append(rows(end - start, num_heads, 100 + number))
        wanted.append(attend_dense(queries[-1], k, v, SCALE, window, soft_cap))
    attention = FlexAttention(replace(spec, attention_soft_cap=soft_cap), kv, spans)
    assert torch.allclose(attention.attend(0, torch.cat(queries)), torch.cat(wanted), atol=2e-6)


def test_a_shared_block_has_its_place_in_each_sequence(spec: ModelSpec) -> None:
    """A prefix hit: the same block, at the same positions, of two sequences."""
    kv = pool(1, None)
    shared, own = [5, 1], [[2], [9]]
    wanted, spans = [], []
    for number, mine in enumerate(own):
        k, v = rows(10, NUM_KV_HEADS, 7), rows(10, NUM_KV_HEADS, 8)
        k[8:], v[8:] = rows(2, NUM_KV_HEADS, 20 + number), rows(2, NUM_KV_HEADS, 30 + number)
        table = torch.tensor(shared + mine)
        kv.write(0, kv.slots(0, 10, table), k, v)
        spans.append(Span(torch.ones(1, dtype=torch.int64), 9, table, 1))
        wanted.append(attend_dense(rows(1, 4, number), k, v, SCALE))
    q = torch.cat([rows(1, 4, number) for number in range(2)])
    found = FlexAttention(spec, kv, spans).attend(0, q)
    assert torch.allclose(found, torch.cat(wanted), atol=2e-6)


@pytest.mark.parametrize("num_rows", [1, CHUNK_ROWS])
def test_the_blocks_that_are_read_are_those_with_something_to_see(num_rows: int) -> None:
    """The uncompiled functions ignore the list of blocks, the compiled kernel lives by it."""
    starts, windows = (0, 1, 3, 4, 31, 63, 64, 90), (None, 1, 5, 64)
    kv = pool(len(starts), *windows)
    spans = [span(number, start, start + num_rows) for number, start in enumerate(starts)]
    tables = tables_of(kv, spans, BLOCKS_EACH)
    tiles = lay_tiles(kv, tables, torch.tensor(starts), num_rows)
    slots = torch.arange((kv.num_blocks + 1) * BLOCK_SIZE)
    head = torch.tensor(0)
    for window in windows:
        mask = tiles.masks[window]
        for tile in range(len(starts)):
            count = int(mask.kv_num_blocks[tile, 0, 0])
            listed = mask.kv_indices[tile, 0, 0, :count].tolist()
            seen = mask.mask_mod(torch.tensor(tile), head, torch.arange(num_rows)[:, None], slots)
            visible = seen.view(num_rows, -1, BLOCK_SIZE).any(dim=2).any(dim=0)
            assert sorted(listed) == visible.nonzero().flatten().tolist(), (window, tile)


@pytest.mark.parametrize("name", ["llama-0", "mistral-2", "gemma2-1", "gemma3-2", "qwen3_moe-0"])
def test_a_whole_model_decodes_the_same(name: str, tmp_path: Path) -> None:
    """`decode_forward`, what a graph holds, against the flat pass with the CPU's attention."""
    folder = write_random_model(tmp_path, tiny_families.config_of(name), 1)
    spec = read_spec(folder)
    model = Model(spec, load_weights(folder, spec, torch.float32))
    pools = [PagedKv(kv_layout(spec, "float32"), 24, 16) for _ in range(2)]
    ends, given = (1, 17, 40), torch.randint(3, 97, (3, 64))
    tables = [torch.tensor([number, 23 - number, 8 + number, 13 + number]) for number in range(3)]
    for kv in pools:
        for layer in range(spec.num_layers):
            for each in kv.pools(layer):
                each[:-1] = 3.0  # an earlier tenant's, which beginning a block clears
        prompts = [
            Span(given[number, : end - 1], 0, tables[number], 0)
            for number, end in enumerate(ends)
            if end > 1
        ]
        flat_forward(model, kv, prompts, lambda _: None)
    for step in range(10):
        spans = [
            Span(given[number, end + step - 1 : end + step], end + step - 1, tables[number], 1)
            for number, end in enumerate(ends)
        ]
        wanted = flat_forward(model, pools[0], spans, lambda _: None)
        found = decode_forward(model, pools[1], decode_inputs(model, pools[1], spans))
        assert found.shape == (4, spec.vocab_size)  # padded with the first
        assert torch.allclose(found[:3], wanted, atol=1e-5)
    for layer in range(spec.num_layers):
        for mine, other in zip(pools[0].pools(layer), pools[1].pools(layer), strict=True):
            assert torch.allclose(mine, other, atol=1e-5)
