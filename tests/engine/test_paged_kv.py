"""Blocks hold what was written, travel as bytes, and never show what an earlier tenant left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from banyan_core.types import KvLayer, KvLayout, equal_layers
from banyan_engine.paged_kv import PagedKv

NUM_LAYERS = 2


def pool(dtype: str = "float32") -> PagedKv:
    return PagedKv(equal_layers(NUM_LAYERS, 2, 8, dtype), num_blocks=6, block_size=4)


def rows(num_tokens: int, seed: int) -> Tensor:
    return torch.randn(num_tokens, 2, 8, generator=torch.Generator().manual_seed(seed))


def test_what_is_written_is_gathered_in_the_tables_order() -> None:
    kv, keys, values = pool(), rows(10, 1), rows(10, 2)
    table = torch.tensor((4, 0, 3))
    for start, end in ((0, 3), (3, 4), (4, 10)):
        slots = kv.slots(start, end - start, table)
        kv.write(1, slots, keys[start:end], values[start:end])
    found_keys, found_values = kv.gather(1, table)
    assert torch.equal(found_keys[:10], keys)
    assert torch.equal(found_values[:10], values)
    assert not kv.gather(0, table)[0].any()


def test_slots_past_the_last_written_hold_zeros_whoever_was_there_before() -> None:
    kv = pool()
    poison = torch.full((8, 2, 8), torch.nan)
    kv.write(0, kv.slots(0, 8, torch.tensor((2, 5))), poison, poison)
    kv.write(0, kv.slots(0, 5, torch.tensor((5, 2))), rows(5, 1), rows(5, 2))
    keys, values = kv.gather(0, torch.tensor((5, 2)))
    assert torch.equal(keys[:5], rows(5, 1))
    assert not keys[5:].any()
    assert not values[5:].any()


def test_int8_rows_keep_their_scale_wherever_they_go() -> None:
    source, target = pool("int8"), pool("int8")
    keys, values = rows(4, 1) * torch.tensor([1e-3, 1.0, 1e3, 0.0]).view(4, 1, 1), rows(4, 2)
    source.write(1, source.slots(0, 4, torch.tensor((3,))), keys, values)
    page = source.export_page(3, 1)
    assert len(page) == source.layout.page_bytes(1, 4) == 2 * 4 * 2 * (8 + 4)
    target.import_page(0, 1, page)
    found = target.gather(1, torch.tensor((0,)))
    for given, read in zip((keys, values), found, strict=True):
        step = given.abs().amax(-1, keepdim=True) / 127
        assert ((read - given).abs() <= step * 0.501 + 1e-30).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_int8_row_that_is_not_finite_reads_as_nan_and_no_other_does(bad: float) -> None:
    kv, keys = pool("int8"), rows(4, 1)
    keys[2, 1, 3] = bad
    kv.write(0, kv.slots(0, 4, torch.tensor((3,))), keys, rows(4, 2))
    found, _ = kv.gather(0, torch.tensor((3,)))
    assert found[2, 1].isnan().all()
    assert int(found.isnan().sum()) == found.shape[-1]


@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_pages_travel_as_k_then_v(dtype: str, width: int) -> None:
    source, target = pool(dtype), pool(dtype)
    number = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    keys, values = rows(4, 1).to(number), rows(4, 2).to(number)
    source.write(1, source.slots(0, 4, torch.tensor((3,))), keys, values)
    page = source.export_page(3, 1)
    assert len(page) == source.layout.page_bytes(1, 4) == 2 * 4 * 2 * 8 * width
    halves = torch.frombuffer(bytearray(page), dtype=number).view(2, 4, 2, 8)
    assert torch.equal(halves[0], keys)
    assert torch.equal(halves[1], values)
    target.import_page(0, 1, page)
    assert target.export_page(0, 1) == page
    assert not any(target.export_page(0, 0))


def test_pages_of_another_layout_or_place_are_refused() -> None:
    kv = pool()
    page = kv.export_page(0, 0)
    for data in (page[:-1], page + b"\0", b""):
        with pytest.raises(ValueError, match=f"page: {len(data)} bytes, expected {len(page)}"):
            kv.import_page(0, 0, data)
    for block_id in (-1, 6):
        with pytest.raises(ValueError, match=f"block_id: {block_id}, expected 0 to 5"):
            kv.import_page(block_id, 0, page)
        with pytest.raises(ValueError, match=f"block_id: {block_id}, expected 0 to 5"):
            kv.export_page(block_id, 0)
    for layer in (-1, NUM_LAYERS):
        with pytest.raises(ValueError, match=f"layer: {layer}, expected 0 to 1"):
            kv.export_page(0, layer)


@pytest.mark.parametrize("table", [(0,), (0, 6), (0, -1)])
def test_tables_that_are_too_short_or_lead_outside_are_refused(table: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block_table: no block of this pool for positions 3 to 6"):
        pool().slots(3, 3, torch.tensor(table))


def test_latent_attention_fits_as_one_head_whose_values_lie_in_its_keys() -> None:
    """DeepSeek-V3: 512 latent and 64 rope channels for all its 128 heads."""
    latent = KvLayout((KvLayer(num_kv_heads=1, key_dim=512 + 64, value_dim=0),) * 3, "bfloat16")
    assert latent.token_bytes == 3 * (512 + 64) * 2
    source, target = (PagedKv(latent, num_blocks=6, block_size=4) for _ in range(2))
    keys = torch.randn(6, 1, 576, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    table = torch.tensor((5, 2))
    source.write(1, source.slots(0, 6, table), keys, keys[:, :, :0])
    for block_id in (5, 2):
        page = source.export_page(block_id, 1)
        assert len(page) == latent.page_bytes(1, 4) == 4 * 576 * 2
        target.import_page(block_id, 1, page)
    found, values = target.gather(1, table)
    assert torch.equal(found[:6], keys)
    assert not found[6:].any()
    assert values.shape == (8, 1, 0)
