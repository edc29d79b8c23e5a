"""The runner as the engine loop meets it: plans in, tokens out, layers announced, errors named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.checkpoint import SINGLE_NAME
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.torch_runner import NUMERICS, TorchRunner

MakeFolder = Callable[..., Path]
EXACT: dict[str, Any] = {"dtype": "float32", "kv_dtype": "float32"}
"""So that fast mode, too, rounds nothing that a test could see."""
every_numerics = pytest.mark.parametrize("numerics", NUMERICS)


@every_numerics
def test_layers_are_announced_in_order_once_their_kv_is_written(
    numerics: str, model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    runner = TorchRunner(model_folder(), num_blocks=8, numerics=numerics, **EXACT)
    scripts = [
        script("a", random_tokens(32, seed=1), (0, 1)),
        script("b", random_tokens(16, seed=2), (5,)),
    ]
    announced: list[tuple[int, list[bytes]]] = []

    def on_layer(layer: int) -> None:
        announced.append((layer, [runner.export_page(block, layer) for block in (0, 1, 5)]))

    items = tuple(s.item(0, len(s.token_ids)) for s in scripts)
    runner.run(StepPlan(1, items), on_layer)
    assert [layer for layer, _ in announced] == [0, 1]
    for layer, pages in announced:
        assert pages == [runner.export_page(block, layer) for block in (0, 1, 5)]
        assert all(any(page) for page in pages)


@every_numerics
def test_only_items_that_sample_are_answered_in_the_plans_order(
    numerics: str, model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    runner = TorchRunner(model_folder(), num_blocks=8, numerics=numerics, **EXACT)
    scripts = [script(name, random_tokens(5, seed=n), (n,)) for n, name in enumerate("cab")]
    items = [s.item(0, 5, sample=s.sequence_id != "a") for s in scripts]
    result = runner.run(StepPlan(9, tuple(items)), lambda _: None)
    assert result.number == 9
    assert [sampled.sequence_id for sampled in result.sampled] == ["c", "b"]
    nothing = runner.run(StepPlan(10, (replace(items[0], sample=False),)), lambda _: None)
    assert nothing.sampled == ()
    assert runner.run(StepPlan(11, ()), lambda _: None).sampled == ()


@every_numerics
def test_the_draw_is_that_of_the_outputs_length(
    numerics: str, model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    """Index = tokens of output so far; so the same logits give other draws at other indices."""
    runner = TorchRunner(model_folder(), num_blocks=8, numerics=numerics, **EXACT)
    sequence = script("s", random_tokens(5, seed=1), (0,), SamplingParams(temperature=3.0, seed=4))
    item = sequence.item(0, 5)

    def draws() -> list[int]:
        tokens = []
        for index in range(30):
            opening = replace(item.opening, output_token_ids=(7,) * index)
            plan = StepPlan(1, (replace(item, opening=opening),))
            token = runner.run(plan, lambda _: None).sampled[0].tokens[0]
            tokens.append(token.token_id)
        return tokens

    first = draws()
    assert len(set(first)) > 10
    assert draws() == first


@every_numerics
def test_end_tokens_of_the_folder_wait_for_min_tokens(
    numerics: str, tmp_path: Path, script: Any
) -> None:
    folder = write_random_model(tmp_path, TINY_CONFIG, seed=1)
    biased = SamplingParams(temperature=0.0, logit_bias=((2, 100.0),))
    wanting = script("s", (5, 6, 7), (0,), biased).item(0, 3)
    waiting = script("s", (5, 6, 7), (0,), replace(biased, min_tokens=1)).item(0, 3)
    runner = TorchRunner(folder, num_blocks=1, numerics=numerics, **EXACT)
    other = TorchRunner(folder, num_blocks=1, numerics=numerics, end_token_ids=(3,), **EXACT)

    def token_id(which: TorchRunner, plan_item: Any) -> int:
        token = which.run(StepPlan(1, (plan_item,)), lambda _: None).sampled[0].tokens[0]
        return token.token_id

    assert token_id(runner, wanting) == 2
    assert token_id(runner, waiting) != 2
    assert token_id(other, waiting) == 2


@every_numerics
def test_a_sequence_with_nan_fails_alone_and_leaves_no_trace(
    numerics: str, tmp_path: Path, script: Any, random_tokens: Any
) -> None:
    folder = write_random_model(tmp_path, TINY_CONFIG, seed=1)
    tensors = load_file(folder / SINGLE_NAME)
    tensors["model.embed_tokens.weight"][0] = torch.nan
    save_file(tensors, folder / SINGLE_NAME)
    runner = TorchRunner(folder, num_blocks=4, numerics=numerics, **EXACT)
    sampled_params = SamplingParams(seed=3)
    good = script("good", random_tokens(9, seed=1), (0,))
    bad = script("bad", (4, 0, 5), (1,))
    sick = script("sick", (4, 0, 5), (2,), sampled_params)
    alone = runner.run(StepPlan(1, (good.item(0, 9),)), lambda _: None).sampled
    items = (bad.item(0, 3), good.item(0, 9), sick.item(0, 3))
    first, second, third = runner.run(StepPlan(2, items), lambda _: None).sampled
    assert (second,) == alone
    for failed in (first, third):
        assert failed.tokens == ()
        assert failed.error == "logits: not finite"
    # The next tenant of the block is healthy.
    heir = script("good", good.token_ids, (1,))
    for start, end in ((0, 8), (8, 9)):
        result = runner.run(StepPlan(3, (heir.item(start, end),)), lambda _: None)
    assert result.sampled == alone


@every_numerics
def test_plans_that_do_not_fit_are_refused_by_name(
    numerics: str, model_folder: MakeFolder, script: Any
) -> None:
    runner = TorchRunner(model_folder(), num_blocks=4, numerics=numerics, **EXACT)

    def run(token_ids: tuple[int, ...], start: int, table: tuple[int, ...]) -> None:
        item = replace(script("s7", token_ids, table).item(0, len(token_ids)), start=start)
        runner.run(StepPlan(1, (item,)), lambda _: None)

    with pytest.raises(ValueError, match="s7: positions 511 to 513, expected at most 512"):
        run((1, 2), 511, (0,) * 33)
    with pytest.raises(ValueError, match="s7: token_ids: expected 0 to 96"):
        run((97,), 0, (0,))
    with pytest.raises(ValueError, match="s7: token_ids: expected at least one"):
        run((), 0, (0,))
    with pytest.raises(ValueError, match="block_table: no block of this pool"):
        run((1,), 16, (0,))
    with pytest.raises(ValueError, match="block_table: expected 0 to 3, got \\[4\\]"):
        run((1,), 0, (4,))
    with pytest.raises(ValueError, match="s8: expected an opening, it is not known here"):
        runner.run(StepPlan(1, (PlanItem("s8", (1,), 0, True),)), lambda _: None)


@every_numerics
def test_what_was_said_once_stays_until_the_sequence_is_closed(
    numerics: str, model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    """Steps that bring only news give the tokens of plans that repeat everything."""
    params = SamplingParams(temperature=1.5, seed=2, repetition_penalty=1.5, frequency_penalty=0.5)
    prompt = random_tokens(20, seed=1)
    told = TorchRunner(model_folder(), num_blocks=40, numerics=numerics, block_size=4, **EXACT)
    item = script("s", prompt, (3, 1, 5, 7, 9), params).item(0, 20)
    output: list[int] = []
    for step in range(60):
        (sampled,) = told.run(StepPlan(step, (item,)), lambda _: None).sampled
        output.append(sampled.tokens[0].token_id)
        position = 20 + step
        new = (11 + step // 4 % 29,) if position % 4 == 0 else ()
        item = PlanItem("s", (output[-1],), position, True, new)
    again = TorchRunner(model_folder(), num_blocks=40, numerics=numerics, block_size=4, **EXACT)
    for index in range(0, 60, 7):
        tokens = (*prompt, *output[:index])
        opening = Opening(prompt, tuple(output[:index]), tuple(range(20)), params)
        whole = PlanItem("s", tokens, 0, True, opening=opening)
        (sampled,) = again.run(StepPlan(1, (whole,)), lambda _: None).sampled
        assert sampled.tokens[0].token_id == output[index]
    told.run(StepPlan(99, (), closed=("s", "nobody")), lambda _: None)
    with pytest.raises(ValueError, match="expected an opening"):
        told.run(StepPlan(100, (item,)), lambda _: None)


@every_numerics
def test_drafts_change_no_token(
    numerics: str, model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    """Right, wrong and half right guesses; deterministic mode has equal bits, so equal tokens."""
    params = SamplingParams(temperature=0.8, seed=5, presence_penalty=0.3, logprobs=True)
    prompt = random_tokens(9, seed=3)
    plain = TorchRunner(model_folder(), num_blocks=4, numerics=numerics, **EXACT)
    item = script("s", prompt, (0, 1, 2), params).item(0, 9)
    wanted = []
    for step in range(24):
        (sampled,) = plain.run(StepPlan(step, (item,)), lambda _: None).sampled
        wanted.append(sampled.tokens[0])
        item = PlanItem("s", (wanted[-1].token_id,), 9 + step, True)
    drafted = TorchRunner(model_folder(), num_blocks=4, numerics=numerics, **EXACT)
    item = script("s", prompt, (0, 1, 2), params).item(0, 9)
    found: list[OutputToken] = []
    while len(found) < 20:
        (sampled,) = drafted.run(StepPlan(1, (item,)), lambda _: None).sampled
        found += sampled.tokens
        right = [token.token_id for token in wanted[len(found) : len(found) + 3]]
        drafts = right[: len(found) % 4] + [0] * (3 - len(found) % 4)
        tokens = (found[-1].token_id, *drafts)
        item = PlanItem("s", tokens, 8 + len(found), True, (), num_draft_tokens=3)
    assert len(found) < 24
    assert [t.token_id for t in found] == [t.token_id for t in wanted[: len(found)]]
    if numerics == "deterministic":
        assert found == wanted[: len(found)]
