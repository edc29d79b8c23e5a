"""The served model is the model: logits and tokens as `transformers` has them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from banyan_core.runner import StepPlan
from banyan_engine.flat_forward import flat_forward
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.reference import reference_logits
from banyan_engine.spec import read_spec
from banyan_engine.tiled_forward import tiled_forward
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.weights import load_weights

CONFIG_NAMES = (
    "grouped heads",
    "one head each, tied",
    "one kv head, wide heads",
    "linear rope",
    "llama3 rope",
)
FORWARDS = {"fast": flat_forward, "deterministic": tiled_forward}
TOLERANCE = 1e-4
NUM_BLOCKS = 40

every_config = pytest.mark.parametrize("name", CONFIG_NAMES)
every_forward = pytest.mark.parametrize("numerics", FORWARDS)


def load(folder: Path) -> Model:
    spec = read_spec(folder)
    return Model(spec, load_weights(folder, spec, torch.float32))


def pool(folder: Path, block_size: int = 16) -> PagedKv:
    layout = TorchRunner(folder, num_blocks=1, kv_dtype="float32").layout
    return PagedKv(layout, NUM_BLOCKS, block_size)


def expected(folder: Path, token_ids: tuple[int, ...]) -> Tensor:
    """Logits [tokens, vocab] as transformers computes them."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def worst(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


@every_config
def test_the_reference_agrees_with_transformers(
    name: str, model_folder: Callable[..., Path], random_tokens: Any
) -> None:
    folder, token_ids = model_folder(name), random_tokens(150, seed=1)
    assert worst(reference_logits(load(folder), token_ids), expected(folder, token_ids)) < TOLERANCE


@every_config
@every_forward
@pytest.mark.parametrize("cuts", [(70,), (1, 2, 33, 48, 69, 70), tuple(range(1, 71))])
def test_chunks_agree_with_transformers(
    name: str,
    numerics: str,
    cuts: tuple[int, ...],
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    folder, token_ids = model_folder(name), random_tokens(70, seed=2)
    wanted = expected(folder, token_ids)
    kv, model = pool(folder), load(folder)
    sequence = script("s", token_ids, (7, 3, 9, 30, 31))
    with torch.inference_mode():
        for start, end in zip((0, *cuts), cuts, strict=False):
            logits = FORWARDS[numerics](model, kv, [sequence.span(start, end)], lambda layer: None)
            assert worst(logits[0], wanted[end - 1]) < TOLERANCE


@every_forward
@pytest.mark.parametrize("start, end, num_sampled", [(0, 40, 40), (30, 37, 5), (15, 17, 2)])
def test_several_tokens_of_a_span_give_logits_each(
    numerics: str,
    start: int,
    end: int,
    num_sampled: int,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    folder, token_ids = model_folder(), random_tokens(40, seed=6)
    model, kv, forward = load(folder), pool(folder), FORWARDS[numerics]
    first, second = script("a", token_ids, (1, 3, 5)), script("b", token_ids, (2, 4, 6))
    wanted = reference_logits(model, token_ids)
    with torch.inference_mode():
        if start:
            quiet = [s.span(0, start, num_sampled=0) for s in (first, second)]
            assert len(forward(model, kv, quiet, lambda _: None)) == 0
        spans = [first.span(start, end, num_sampled=num_sampled), second.span(start, end)]
        logits = forward(model, kv, spans, lambda _: None)
    assert worst(logits[:-1], wanted[end - num_sampled : end]) < TOLERANCE
    assert worst(logits[-1], wanted[end - 1]) < TOLERANCE


@every_config
@every_forward
def test_a_mixed_batch_agrees_with_transformers(
    name: str,
    numerics: str,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    """Chunks, decodes of unlike length and an item without sampling, all in one step."""
    folder = model_folder(name)
    kv, model, forward = pool(folder), load(folder), FORWARDS[numerics]
    lengths = (90, 40, 41, 5, 17)
    scripts = [
        script(f"s{n}", random_tokens(length, seed=n), tuple(range(8 * n, 8 * n + 8)))
        for n, length in enumerate(lengths)
    ]
    starts = (60, 39, 40, 4, 0)
    with torch.inference_mode():
        before = [s.span(0, start) for s, start in zip(scripts, starts, strict=True) if start]
        forward(model, kv, before, lambda layer: None)
        spans = [
            s.span(start, length, num_sampled=int(length != 90))
            for s, start, length in zip(scripts, starts, lengths, strict=True)
        ]
        logits = forward(model, kv, spans, lambda layer: None)
    assert len(logits) == 4
    for row, sequence in zip(logits, scripts[1:], strict=True):
        assert worst(row, expected(folder, sequence.token_ids)[-1]) < TOLERANCE


@every_config
@every_forward
def test_a_cache_hit_agrees_with_transformers(
    name: str,
    numerics: str,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    """The prefix comes from another pool, page by page, into other block ids."""
    folder, token_ids = model_folder(name), random_tokens(60, seed=4)
    model, forward = load(folder), FORWARDS[numerics]
    source, target = pool(folder), pool(folder)
    with torch.inference_mode():
        forward(model, source, [script("a", token_ids, (0, 1, 2, 3)).span(0, 60)], lambda _: None)
        for layer in range(model.spec.num_layers):
            for block in range(3):
                target.import_page(20 - block, layer, source.export_page(block, layer))
        span = script("b", token_ids, (20, 19, 18, 5)).span(48, 60)
        logits = forward(model, target, [span], lambda _: None)
    assert worst(logits[0], expected(folder, token_ids)[-1]) < TOLERANCE


@every_forward
@pytest.mark.parametrize("block_size", [1, 8, 48])
def test_any_block_size_gives_the_same_model(
    numerics: str,
    block_size: int,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    folder, token_ids = model_folder(), random_tokens(37, seed=5)
    model, kv, forward = load(folder), pool(folder, block_size), FORWARDS[numerics]
    sequence = script("s", token_ids, tuple(range(38)))
    wanted = reference_logits(model, token_ids)
    with torch.inference_mode():
        for start, end in ((0, 20), (20, 21), (21, 37)):
            logits = forward(model, kv, [sequence.span(start, end)], lambda _: None)
            assert worst(logits[0], wanted[end - 1]) < TOLERANCE


@every_config
@every_forward
def test_greedy_tokens_are_those_of_transformers_where_the_margin_is_clear(
    name: str,
    numerics: str,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    """Four prompts decode together; each is fed with what transformers would have said."""
    folder = model_folder(name)
    runner = TorchRunner(
        folder, num_blocks=NUM_BLOCKS, numerics=numerics, dtype="float32", kv_dtype="float32"
    )
    prompts = [random_tokens(length, seed=length) for length in (9, 30, 16, 3)]
    scripts = [
        script(f"s{n}", prompt + random_tokens(20, seed=n), tuple(range(8 * n, 8 * n + 8)))
        for n, prompt in enumerate(prompts)
    ]
    wanted = [expected(folder, sequence.token_ids) for sequence in scripts]
    num_clear = 0
    for step in range(20):
        ends = [len(prompt) + step for prompt in prompts]
        items = tuple(
            sequence.item(end - 1 if step else 0, end)
            for sequence, end in zip(scripts, ends, strict=True)
        )
        result = runner.run(StepPlan(step + 1, items), lambda _: None)
        assert [sampled.sequence_id for sampled in result.sampled] == ["s0", "s1", "s2", "s3"]
        for sampled, logits, end in zip(result.sampled, wanted, ends, strict=True):
            best, second = logits[end - 1].topk(2).values.tolist()
            if best - second > 1e-3:
                num_clear += 1
                assert sampled.tokens
                assert sampled.tokens[0].token_id == int(logits[end - 1].argmax())
    assert num_clear > 70
