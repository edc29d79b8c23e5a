"""A prompt's log probabilities, in any chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from banyan_core.runner import StepPlan
from banyan_core.types import SamplingParams
from banyan_engine.checkpoint import SINGLE_NAME
from banyan_engine.model import Model
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.reference import reference_logits
from banyan_engine.spec import read_spec
from banyan_engine.torch_runner import NUMERICS, TorchRunner
from banyan_engine.weights import load_weights

MakeFolder = Callable[..., Path]
EXACT: dict[str, Any] = {"dtype": "float32", "kv_dtype": "float32"}
"""So that fast mode, too, rounds nothing that a test could see."""
every_numerics = pytest.mark.parametrize("numerics", NUMERICS)


@every_numerics
@pytest.mark.parametrize("cuts", [(10,), (3, 7, 10), (9, 10)])
def test_prompt_logprobs_are_those_of_the_reference(
    numerics: str, cuts: tuple[int, ...], model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    params = SamplingParams(temperature=0.0, num_prompt_logprobs=2)
    sequence = script("s", random_tokens(10, seed=4), (0,), params)
    runner = TorchRunner(model_folder(), num_blocks=1, numerics=numerics, **EXACT)
    for start, end in zip((0, *cuts), cuts, strict=False):
        item = sequence.item(start, end, sample=end == 10)
        if start:
            item = replace(item, opening=None)
        sampled = runner.run(StepPlan(1, (item,)), lambda _: None).sampled
    spec = read_spec(model_folder())
    model = Model(spec, load_weights(model_folder(), spec, torch.float32))
    logprobs = torch.log_softmax(reference_logits(model, sequence.token_ids).double(), dim=-1)
    found = sampled[0].prompt_logprobs
    assert [token.token_id for token in found] == list(sequence.token_ids[1:])
    for position, token in enumerate(found):
        row = logprobs[position]
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        values, token_ids = row.topk(2)
        assert [one for one, _ in token.top] == token_ids.tolist()
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-4)


@every_numerics
def test_a_prompt_whose_logprobs_are_no_numbers_fails_when_its_token_is_due(
    numerics: str, tmp_path: Path, script: Any
) -> None:
    """Found in a chunk that samples nothing, where only later tokens are sound."""
    folder = write_random_model(tmp_path, TINY_CONFIG, seed=1)
    tensors = load_file(folder / SINGLE_NAME)
    tensors["model.embed_tokens.weight"][0] = torch.nan
    save_file(tensors, folder / SINGLE_NAME)
    runner = TorchRunner(folder, num_blocks=1, numerics=numerics)
    params = SamplingParams(temperature=0.0, num_prompt_logprobs=0)
    sequence = script("s", (4, 0, 5, 6), (0,), params)
    first, second = sequence.item(0, 2, sample=False), replace(sequence.item(2, 4), opening=None)
    assert runner.run(StepPlan(1, (first,)), lambda _: None).sampled == ()
    (failed,) = runner.run(StepPlan(2, (second,)), lambda _: None).sampled
    assert (failed.tokens, failed.error) == ((), "logits: not finite")
