"""Adapters: the logits of merged weights, several in one batch, and folders that are refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import Adapter, SamplingParams
from banyan_engine.flat_forward import flat_forward
from banyan_engine.lora import LoraWeights, load_lora
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.reference import reference_logits
from banyan_engine.spec import read_spec
from banyan_engine.tiled_forward import tiled_forward
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.weights import load_weights

FORWARDS = {"fast": flat_forward, "deterministic": tiled_forward}
TOLERANCE = 1e-4
every_forward = pytest.mark.parametrize("numerics", FORWARDS)

# What peft would choose, spelled out by hand: module -> (rank, scale), by the end of its name.
ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
MLP = {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
CONFIGS: dict[str, tuple[dict[str, object], Callable[[int, str], float | None]]] = {
    "attention": ({}, lambda layer, end: 2.0 if end in ATTENTION else None),
    "all-linear": (
        {"target_modules": "all-linear", "lora_alpha": 3},
        lambda layer, end: 0.75,
    ),
    "a pattern": (
        {"target_modules": r".*\.(v_proj|down_proj)"},
        lambda layer, end: 2.0 if end in ("self_attn.v_proj", "mlp.down_proj") else None,
    ),
    "one layer, rank stabilized": (
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "use_rslora": True},
        lambda layer, end: (
            4.0 if layer == 1 and end in ("self_attn.q_proj", "mlp.up_proj") else None
        ),
    ),
    "ranks and alphas of their own": (
        {
            "target_modules": "all-linear",
            "exclude_modules": ["o_proj"],
            "rank_pattern": {r"layers\.0\.mlp\.up_proj": 2, "v_proj": 1},
            "alpha_pattern": {"v_proj": 5},
        },
        lambda layer, end: {
            "self_attn.o_proj": None,
            "self_attn.v_proj": 5.0,
            "mlp.up_proj": 4.0 if layer == 0 else 2.0,
        }.get(end, 2.0),
    ),
}


def load(folder: Path) -> Model:
    spec = read_spec(folder)
    return Model(spec, load_weights(folder, spec, torch.float32))


def pool(folder: Path) -> PagedKv:
    return PagedKv(TorchRunner(folder, num_blocks=1, kv_dtype="float32").layout, 40, 16)


def merged_logits(
    model: Path,
    adapter: Path,
    scale: Callable[[int, str], float | None],
    token_ids: tuple[int, ...],
) -> Tensor:
    """Logits of transformers with W + scale B A in place of each W that has a delta."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    judge = transformers.AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    deltas = load_file(adapter / "adapter_model.safetensors")
    num_merged = 0
    with torch.inference_mode():
        for name, module in judge.model.layers.named_modules():
            layer, _, end = name.partition(".")
            factor = scale(int(layer), end) if end in ATTENTION | MLP else None
            if factor is not None:
                key = f"base_model.model.model.layers.{name}.lora_{{}}.weight"
                down, up = deltas.pop(key.format("A")), deltas.pop(key.format("B"))
                module.weight += factor * (up @ down)
                num_merged += 1
        assert num_merged and not deltas
        logits: Tensor = judge(torch.tensor([token_ids])).logits[0]
    return logits


def worst(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


@pytest.fixture(scope="session")
def adapter_folder(
    model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`adapter_folder("all-linear", seed=2)`: an adapter of the first tiny model."""

    def folder(name: str = "attention", seed: int = 1) -> Path:
        path = tmp_path_factory.mktemp("adapter")
        return write_random_lora(path, model_folder(), LORA_CONFIG | CONFIGS[name][0], seed)

    return folder


@pytest.fixture
def loaded(adapter_folder: Any, model_folder: Any) -> Callable[..., LoraWeights]:
    def load_it(name: str = "attention", seed: int = 1) -> LoraWeights:
        spec = read_spec(model_folder())
        return load_lora(adapter_folder(name, seed), spec, torch.float32)

    return load_it


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_what_merged_weights_are(
    name: str, model_folder: Any, adapter_folder: Any, random_tokens: Any
) -> None:
    folder, token_ids, adapter = model_folder(), random_tokens(50, seed=1), adapter_folder(name)
    model = load(folder)
    found = reference_logits(model, token_ids, load_lora(adapter, model.spec, torch.float32))
    wanted = merged_logits(folder, adapter, CONFIGS[name][1], token_ids)
    assert worst(found, wanted) < TOLERANCE
    assert worst(found, reference_logits(model, token_ids)) > 0.1, "the adapter does something"


@every_forward
def test_a_batch_of_the_base_and_two_adapters(
    numerics: str, model_folder: Any, adapter_folder: Any, random_tokens: Any, script: Any
) -> None:
    """The same prompt four times: chunks, a prefix from another pool, decodes, all in one step."""
    folder, token_ids = model_folder(), random_tokens(60, seed=3)
    model, kv, forward = load(folder), pool(folder), FORWARDS[numerics]
    names = ("attention", "all-linear")
    folders = [adapter_folder(name, seed) for seed, name in enumerate(names)]
    first, second = (load_lora(each, model.spec, torch.float32) for each in folders)
    wanted = [
        merged_logits(folder, f, CONFIGS[n][1], token_ids)
        for f, n in zip(folders, names, strict=True)
    ]
    sequences = [script(f"s{n}", token_ids, tuple(range(8 * n, 8 * n + 4))) for n in range(4)]
    adapters = [first, None, second, first]
    with torch.inference_mode():
        other = pool(folder)
        forward(model, other, [sequences[0].span(0, 32, adapter=first)], lambda _: None)
        for layer in range(model.spec.num_layers):
            for block in range(2):
                kv.import_page(block, layer, other.export_page(block, layer))
        starts = [32, 0, 10, 59]
        before = [
            each.span(0, start, num_sampled=0, adapter=adapter)
            for each, start, adapter in zip(sequences[1:], starts[1:], adapters[1:], strict=True)
            if start
        ]
        forward(model, kv, before, lambda _: None)
        spans = [
            each.span(start, 60, num_sampled=1, adapter=adapter)
            for each, start, adapter in zip(sequences, starts, adapters, strict=True)
        ]
        logits = forward(model, kv, spans, lambda _: None)
    base = reference_logits(model, token_ids)[-1]
    expected = [wanted[0][-1], base, wanted[1][-1], wanted[0][-1]]
    for found, each in zip(logits, expected, strict=True):
        assert worst(found, each) < TOLERANCE
    assert worst(logits[0], logits[2]) > 0.1


def test_company_and_cuts_leave_the_bits_of_deterministic_mode(
    model_folder: Any, loaded: Any, random_tokens: Any, script: Any
) -> None:
    """Whoever else is in the batch, with whatever adapter, and however the prompt is cut."""
    folder, token_ids = model_folder(), random_tokens(45, seed=4)
    model, adapter, other = load(folder), loaded("all-linear"), loaded("a pattern", 5)
    watched = script("s", token_ids, (1, 2, 3))
    company = [
        script(f"c{n}", random_tokens(45, seed=n), (4 * n, 4 * n + 1, 4 * n + 2))
        for n in range(2, 5)
    ]

    def computed(mine: LoraWeights | None, cuts: tuple[int, ...], place: int) -> object:
        """Logits and a page of the watched one, with so many sequences before it in each step."""
        kv, logits = pool(folder), torch.empty(0)
        for start, end in zip((0, *cuts), cuts, strict=False):
            spans = [
                each.span(start, end, adapter=its)
                for each, its in zip(company, (other, None, adapter), strict=True)
            ]
            spans = [*spans[:place], watched.span(start, end, adapter=mine), *spans[place:]]
            if not place:
                spans = spans[:1]
            logits = tiled_forward(model, kv, spans, lambda _: None)[place]
        return logits.tolist(), kv.export_page(2, 1)

    with torch.inference_mode():
        for mine in (adapter, None):
            alone = computed(mine, tuple(range(1, 46)), 0)
            assert computed(mine, (45,), 1) == alone
            assert computed(mine, (1, 20, 44, 45), 3) == alone


def test_rows_without_an_adapter_have_the_bits_that_they_have_without_company(
    model_folder: Any, loaded: Any, random_tokens: Any, script: Any
) -> None:
    """Fast mode, equal batch shapes: an adapter beside it changes no row of the base."""
    folder = model_folder()
    model = load(folder)
    mine, theirs = (
        script(n, random_tokens(30, seed), table)
        for n, seed, table in (("a", 1, (0, 1)), ("b", 2, (2, 3)))
    )
    with torch.inference_mode():
        plain = [mine.span(0, 30), theirs.span(0, 30)]
        mixed = [mine.span(0, 30), theirs.span(0, 30, adapter=loaded())]
        without = flat_forward(model, pool(folder), plain, lambda _: None)
        beside = flat_forward(model, pool(folder), mixed, lambda _: None)
    assert torch.equal(without[0], beside[0])
    assert not torch.equal(without[1], beside[1])


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 0.2)])
def test_a_runner_computes_with_what_it_has_loaded(
    dtype: str, tolerance: float, model_folder: Any, adapter_folder: Any, random_tokens: Any
) -> None:
    """Log probabilities of the next token; what is dropped stays with whoever has it."""
    folder, token_ids = model_folder(), random_tokens(33, seed=8)
    path, adapter = adapter_folder("all-linear"), Adapter("a", b"digest")
    model = load(folder)
    lora = load_lora(path, model.spec, torch.float32)
    runner = TorchRunner(folder, num_blocks=40, dtype=dtype, kv_dtype=dtype)
    sampling = SamplingParams(temperature=0, logprobs=True, num_top_logprobs=5)

    def opened(name: str, its: Adapter | None, first_block: int) -> PlanItem:
        table = tuple(range(first_block, first_block + 3))
        opening = Opening(token_ids[:32], (), table, sampling, its)
        return PlanItem(name, token_ids[:32], 0, sample=True, opening=opening)

    with pytest.raises(ValueError, match="adapter 'a' is not loaded"):
        runner.run(StepPlan(1, (opened("s", adapter, 0),)), lambda _: None)
    runner.load_adapter(adapter, str(path))
    runner.run(StepPlan(2, (opened("s", adapter, 0), opened("b", None, 3))), lambda _: None)
    runner.drop_adapter(adapter.digest)
    items = tuple(PlanItem(name, token_ids[32:], 32, sample=True) for name in "sb")
    result = runner.run(StepPlan(3, items), lambda _: None)
    for sampled, its in zip(result.sampled, (lora, None), strict=True):
        wanted = reference_logits(model, token_ids, its)[-1].log_softmax(-1)
        for token_id, logprob in sampled.tokens[0].top:
            assert abs(logprob - float(wanted[token_id])) < tolerance
    with pytest.raises(ValueError, match="adapter 'a' is not loaded"):
        runner.run(StepPlan(4, (opened("t", adapter, 6),)), lambda _: None)
