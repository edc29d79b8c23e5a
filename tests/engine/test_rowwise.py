"""The helper's norms, gates, rotations and KV writes against torch's in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from banyan_core.types import equal_layers
from banyan_engine import rowwise
from banyan_engine.kernels import native
from banyan_engine.paged_kv import PagedKv
from banyan_engine.rope import Rotation

BF16 = torch.bfloat16
EPS = 1e-5
ROWS = (1, 3, 40)


@pytest.fixture(autouse=True)
def _two_threads(helper: ctypes.CDLL) -> Iterator[None]:
    torch.set_num_threads(2)
    yield


def by_torch(work: Callable[..., object], *arguments: object) -> object:
    """The same call without the helper, on float32 copies."""

    def wide(value: object) -> object:
        if isinstance(value, Rotation):
            return Rotation(*(part.float() for part in value))
        if isinstance(value, tuple):
            return tuple(wide(each) for each in value)
        return value.float() if isinstance(value, Tensor) else value

    return work(*(wide(argument) for argument in arguments))


def check(found: Tensor, wanted: object, ulps: float = 1.0) -> None:
    """Equal to so many units in the last place of bfloat16, of the larger values."""
    assert isinstance(wanted, Tensor) and found.dtype == BF16 and found.shape == wanted.shape
    torch.testing.assert_close(found.float(), wanted, rtol=ulps * 2**-8, atol=ulps * 2**-8)


@pytest.mark.parametrize("num_rows", ROWS)
def test_norms(num_rows: int) -> None:
    x, made = torch.randn(num_rows, 80).to(BF16) * 7, torch.randn(num_rows, 80).to(BF16)
    weight = torch.randn(80).to(BF16)
    check(rowwise.norm(x, weight, EPS), by_torch(rowwise.norm, x, weight, EPS))
    total, normed = rowwise.add_norm(x, made, weight, EPS)
    assert torch.equal(total, x + made)
    check(normed, by_torch(rowwise.norm, total, weight, EPS))


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates(num_rows: int, activation: str) -> None:
    both = torch.randn(num_rows, 96).to(BF16) * 5
    check(rowwise.gate(both, activation), by_torch(rowwise.gate, both, activation))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates_of_what_is_huge_or_no_number(activation: str) -> None:
    both = torch.ones(1, 32, dtype=BF16)
    both[0, :4] = torch.tensor([200.0, -200.0, 3e38, torch.nan])
    found = rowwise.gate(both, activation)[0, :4]
    wanted = torch.tensor([200.0, 0.0, 3e38, torch.nan]).to(BF16)
    assert torch.equal(found[:3], wanted[:3])
    assert found[3].isnan()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("num_turning", [64, 32])
@pytest.mark.parametrize("with_norms", [False, True])
def test_heads(num_rows: int, num_turning: int, with_norms: bool) -> None:
    qkv = torch.randn(num_rows, 4 + 2 + 2, 64).to(BF16)
    angles = torch.randn(num_rows, 1, num_turning)
    by = Rotation(angles.cos().to(BF16), angles.sin().to(BF16))
    norms = (torch.randn(64).to(BF16), torch.randn(64).to(BF16)) if with_norms else None
    wanted = by_torch(rowwise.split_heads, qkv.clone(), (4, 2), by, norms, EPS)
    found = rowwise.split_heads(qkv, (4, 2), by, norms, EPS)
    assert isinstance(wanted, tuple)
    for one, other in zip(found, wanted, strict=True):
        check(one, other, ulps=4.0 if with_norms else 1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_kv_is_kept_as_torch_keeps_it(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [PagedKv(equal_layers(1, 2, 48, dtype), 4, 16) for _ in range(2)]
    qkv = torch.randn(20, 8, 48).to(BF16)
    qkv[3, 4] = 0
    qkv[4, 5, 7] = torch.nan
    qkv[5, 6, 0] = torch.inf
    for kv in pools:
        slots = kv.slots(5, 20, torch.tensor([2, 0]))
        kv.write(0, slots, qkv[:, 4:6], qkv[:, 6:8])
        monkeypatch.setattr(native, "library", lambda: None)
    for block in range(4):
        assert pools[0].export_page(block, 0) == pools[1].export_page(block, 0)
