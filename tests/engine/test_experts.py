"""A mixture of experts in the compiled helper against plain float32 arithmetic, and torch's way.

Tolerance: 2e-2 of the largest value, as numbers are rounded to 8 bits between two products.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_core.model_spec import kv_layout
from banyan_engine import tiny_families as families
from banyan_engine.experts import mixture
from banyan_engine.flat_forward import flat_forward
from banyan_engine.kernels import grouped, native
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_model import write_random_model
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.weights import load_weights

BF16 = torch.bfloat16
TOLERANCE = 2e-2
Matrices = list[tuple[Tensor, Tensor]]
Shared = tuple[Tensor, Tensor, Tensor] | None
SHAPES = [(64, 32, 0), (96, 64, 96), (160, 96, 32)]
"""Hidden, inner and shared inner channels, which end within what is laid out at a time."""


def made(
    num_experts: int, hidden: int, inner: int, shared_inner: int
) -> tuple[Tensor, Matrices, Shared]:
    def matrix(*shape: int) -> Tensor:
        return (torch.randn(shape) / math.sqrt(shape[1])).to(BF16)

    matrices = [(matrix(2 * inner, hidden), matrix(hidden, inner)) for _ in range(num_experts)]
    shared = None
    if shared_inner:
        shared = matrix(2 * shared_inner, hidden), matrix(hidden, shared_inner), matrix(1, hidden)
    return 3 * matrix(num_experts, hidden), matrices, shared


def one(x: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    left, right = (x @ gate_up.float().t()).chunk(2, dim=-1)
    left = F.silu(left) if activation == "silu" else F.gelu(left, approximate="tanh")
    return (left * right) @ down.float().t()


def plain(
    x: Tensor,
    router: Tensor,
    matrices: Matrices,
    shared: Shared,
    num_chosen: int,
    renormalise: bool,
    activation: str,
) -> Tensor:
    """The definition: every expert over every row, weighted with 0 where it was not chosen."""
    x = x.float()
    shares, chosen = (x @ router.float().t()).softmax(dim=-1).topk(num_chosen)
    if renormalise:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    total = torch.zeros_like(x)
    for number, (gate_up, down) in enumerate(matrices):
        share = (shares * (chosen == number)).sum(dim=-1, keepdim=True)
        total += share * one(x, gate_up, down, activation)
    if shared is not None:
        share = (x @ shared[2].float().t()).sigmoid()
        total += share * one(x, shared[0], shared[1], activation)
    return total


def check(found: Tensor, wanted: Tensor) -> None:
    atol = TOLERANCE * float(wanted.abs().max())
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("hidden, inner, shared_inner", SHAPES)
@pytest.mark.parametrize("num_experts, num_chosen", [(1, 1), (4, 4), (6, 2), (32, 3)])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 6, 33, 150, 1100])
def test_mixtures_of_many_shapes(
    helper: ctypes.CDLL,
    hidden: int,
    inner: int,
    shared_inner: int,
    num_experts: int,
    num_chosen: int,
    num_rows: int,
) -> None:
    """With few rows some experts are chosen by none; the most rows are more than one part."""
    router, matrices, shared = made(num_experts, hidden, inner, shared_inner)
    weights = grouped.experts(router, matrices, shared)
    assert weights is not None
    x = torch.randn(num_rows, hidden).to(BF16)
    for renormalise, activation in ((True, "silu"), (False, "gelu")):
        found = grouped.mixture(
            x,
            weights,
            num_chosen=num_chosen,
            renormalise=renormalise,
            activation=activation,
            helper=helper,
        )
        check(found, plain(x, router, matrices, shared, num_chosen, renormalise, activation))


def by_helper(
    x: Tensor, weights: grouped.Experts | None, helper: ctypes.CDLL, num: int = 1
) -> Tensor:
    assert weights is not None
    how = {"num_chosen": num, "renormalise": True, "activation": "silu", "helper": helper}
    return grouped.mixture(x, weights, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_rows", [1, 9, 60, 1030])
def test_all_rows_may_choose_one(helper: ctypes.CDLL, num_rows: int) -> None:
    router, matrices, _ = made(8, 64, 32, 0)
    router[5] = 4
    x = torch.rand(num_rows, 64).to(BF16) + 1
    found = by_helper(x, grouped.experts(router, matrices, None), helper)
    check(found, one(x.float(), *matrices[5], "silu"))


def test_threads_and_neighbours_change_nothing(helper: ctypes.CDLL) -> None:
    """Few rows of an expert are summed alike, however many they are."""
    router, matrices, shared = made(6, 96, 64, 32)
    weights = grouped.experts(router, matrices, shared)
    x = torch.randn(24, 96).to(BF16)
    together = by_helper(x, weights, helper, 2)
    torch.set_num_threads(2)
    assert torch.equal(by_helper(x, weights, helper, 2), together)


def test_a_neighbours_nan_stays_with_the_neighbour(helper: ctypes.CDLL) -> None:
    router, matrices, shared = made(6, 96, 64, 32)
    weights = grouped.experts(router, matrices, shared)
    x = torch.randn(200, 96).to(BF16)
    wanted = by_helper(x, weights, helper, 2)
    poisoned = x.clone()
    poisoned[70] = torch.nan
    found = by_helper(poisoned, weights, helper, 2)
    assert found[70].isnan().all()
    rest = [row for row in range(200) if row != 70]
    check(found[rest], wanted[rest].float())


def test_no_rows_give_no_rows(helper: ctypes.CDLL) -> None:
    router, matrices, _ = made(4, 64, 32, 0)
    found = by_helper(
        torch.empty(0, 64, dtype=BF16), grouped.experts(router, matrices, None), helper
    )
    assert found.shape == (0, 64)


@pytest.mark.parametrize("hidden, inner", [(48, 32), (64, 16)])
def test_what_it_has_no_code_for_is_said(hidden: int, inner: int) -> None:
    router, matrices, _ = made(4, hidden, inner, 0)
    assert grouped.experts(router, matrices, None) is None
    router, matrices, shared = made(4, 64, 32, 32)
    assert grouped.experts(router, matrices, shared) is not None
    assert grouped.experts(router.float(), matrices, shared) is None
    assert grouped.experts(router, [(up, down.t()) for up, down in matrices], shared) is None


CONFIGS = [
    name for name in families.NAMES if name.startswith(("mixtral", "qwen2_moe", "qwen3_moe"))
]


def wide(name: str) -> families.Config:
    """The configuration with sizes that the helper has code for."""
    config = families.config_of(name)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    }
    return config | {key: size for key, size in sizes.items() if key in config}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_say_the_same_with_the_helper(
    helper: ctypes.CDLL, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, against float32 without it: as far away as torch's bfloat16 is.

    The median over tokens: a few choose another expert, in either, where two are nearly equal.
    """
    folder = write_random_model(tmp_path, wide(name), 1)
    spec = read_spec(folder)

    def logits(dtype: torch.dtype) -> Tensor:
        weights = load_weights(folder, spec, dtype)
        mixtures = [layer.experts for layer in weights.layers if layer.experts is not None]
        assert {each.grouped is not None for each in mixtures} == {dtype == BF16}
        model = Model(spec, weights)
        kv = PagedKv(kv_layout(spec, str(dtype).removeprefix("torch.")), 8, 16)
        tokens = torch.arange(3, 93) % families.VOCAB_SIZE
        span = Span(tokens, 0, torch.arange(8), len(tokens))
        with torch.inference_mode():
            return flat_forward(model, kv, [span], lambda _: None)

    helped = logits(BF16)
    monkeypatch.setattr(native, "library", lambda: None)
    wanted, by_torch = logits(torch.float32), logits(BF16)
    errors = ((each - wanted).square().mean(dim=-1).median() for each in (helped, by_torch))
    error, allowed = (float(each) for each in errors)
    assert error < 3 * allowed


def test_float32_never_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise AssertionError("asked for the helper")

    folder = write_random_model(tmp_path, wide(CONFIGS[0]), 1)
    spec = read_spec(folder)
    weights = load_weights(folder, spec, torch.float32).layers[0].experts
    shape = spec.layers[0].experts
    assert weights is not None and shape is not None
    monkeypatch.setattr(native, "library", refused)
    for whole in (False, True):
        mixture(torch.randn(3, spec.hidden_size), shape, weights, spec.activation, whole=whole)
