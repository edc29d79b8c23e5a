"""What a runner may be given: sizes of its pool, types, modes, threads; and what it says if not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from banyan_core.runner import Runner, StepPlan
from banyan_core.types import SamplingParams, equal_layers
from banyan_engine.torch_runner import TorchRunner

MakeFolder = Callable[..., Path]
PAGE_BYTES = 2 * 16 * 2 * 8 * 2


def test_it_is_a_runner(model_folder: MakeFolder) -> None:
    runner: Runner = TorchRunner(model_folder(), num_blocks=5, block_size=8)
    assert runner.layout == equal_layers(num_layers=2, num_kv_heads=2, head_dim=8, dtype="bfloat16")
    assert (runner.num_blocks, runner.block_size) == (5, 8)


def test_the_pool_can_be_given_in_bytes(model_folder: MakeFolder) -> None:
    runner = TorchRunner(model_folder(), kv_bytes=2 * PAGE_BYTES * 7 + 5)
    assert runner.num_blocks == 7
    assert len(runner.export_page(6, 1)) == PAGE_BYTES


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "num_blocks, kv_bytes: expected exactly one"),
        ({"num_blocks": 1, "kv_bytes": 9999}, "num_blocks, kv_bytes: expected exactly one"),
        ({"num_blocks": 0}, "num_blocks: 0, expected room for at least one block"),
        ({"kv_bytes": 100}, "num_blocks: 0, expected room for at least one block"),
        ({"num_blocks": 1, "block_size": 0}, "block_size: 0, expected at least 1"),
        ({"num_blocks": 1, "numerics": "exact"}, "'exact', expected one of fast, deterministic"),
        ({"num_blocks": 1, "dtype": "int8"}, "dtype: 'int8', expected one of float32"),
        ({"num_blocks": 1, "num_threads": 0}, "num_threads: 0, expected at least 1"),
        (
            {"num_blocks": 1, "numerics": "deterministic", "num_threads": 2},
            "num_threads: 2, expected 1 in deterministic mode",
        ),
        ({"num_blocks": 1, "quantize": "int2"}, "quantize: 'int2', expected one of int8, int4"),
        ({"num_blocks": 1, "kv_dtype": "int4"}, "kv_dtype: 'int4', expected one of float32"),
        (
            {"num_blocks": 1, "numerics": "deterministic", "quantize": "int8"},
            "quantize: 'int8', expected none in deterministic mode",
        ),
        (
            {"num_blocks": 1, "numerics": "deterministic", "dtype": "bfloat16"},
            "dtype: 'bfloat16', expected 'float32' in deterministic mode",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], message: str, model_folder: MakeFolder
) -> None:
    with pytest.raises(ValueError, match=message):
        TorchRunner(model_folder(), **arguments)


@pytest.mark.parametrize(
    "arguments, wanted",
    [({"numerics": "deterministic"}, 1), ({"num_threads": 1}, 1), ({"num_threads": 3}, 3), ({}, 2)],
)
def test_a_step_runs_on_the_threads_it_was_given(
    arguments: dict[str, Any], wanted: int, model_folder: MakeFolder, script: Any
) -> None:
    """Whatever somebody else in the process set meanwhile; without a number that stands."""
    runner = TorchRunner(model_folder(), num_blocks=1, **arguments)
    torch.set_num_threads(2)
    seen: list[int] = []
    plan = StepPlan(1, (script("s", (5, 6), (0,)).item(0, 2),))
    runner.run(plan, lambda _: seen.append(torch.get_num_threads()))
    assert seen == [wanted, wanted]


def test_bfloat16_is_close_to_float32(
    model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    """Half the memory; log probabilities agree roughly."""
    runner = TorchRunner(model_folder(), num_blocks=4, dtype="bfloat16")
    exact = TorchRunner(model_folder(), num_blocks=4, dtype="float32", kv_dtype="float32")
    assert len(runner.export_page(0, 0)) == len(exact.export_page(0, 0)) // 2 == PAGE_BYTES
    sampling = SamplingParams(temperature=0.0, logprobs=True)
    item = script("s", random_tokens(20, seed=1), (0, 1), sampling).item(0, 20)
    found, wanted = (r.run(StepPlan(1, (item,)), lambda _: None).sampled for r in (runner, exact))
    assert found[0].tokens
    assert wanted[0].tokens
    assert found[0].tokens[0].logprob == pytest.approx(wanted[0].tokens[0].logprob, abs=0.2)


@pytest.mark.parametrize(
    "formats, tolerance",
    [
        ({"kv_dtype": "int8"}, 0.05),
        ({"quantize": "int8"}, 0.1),
        ({"quantize": "int4", "kv_dtype": "int8"}, 1.0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_formats_are_close_to_float32(
    formats: dict[str, str],
    tolerance: float,
    dtype: str,
    model_folder: MakeFolder,
    script: Any,
    random_tokens: Any,
) -> None:
    """A prompt and then one token of it by itself: log probabilities agree roughly."""
    exact = TorchRunner(model_folder(), num_blocks=4, dtype="float32", kv_dtype="float32")
    runner = TorchRunner(model_folder(), num_blocks=4, dtype=dtype, **formats)  # type: ignore[arg-type]
    sampling = SamplingParams(temperature=0.0, logprobs=True)
    said = []
    for each in (runner, exact):
        played = script("s", random_tokens(21, seed=1), (0, 1), sampling)
        each.run(StepPlan(1, (played.item(0, 20, sample=False),)), lambda _: None)
        result = each.run(StepPlan(2, (played.item(20, 21),)), lambda _: None)
        said.append(result.sampled[0].tokens[0].logprob)
    assert said[0] == pytest.approx(said[1], abs=tolerance + (0.2 if dtype == "bfloat16" else 0))
