"""Every family, in every way a sequence can be computed, is what `transformers` computes.

One reference per configuration, made once; the ways share it. Fast mode runs in float32 here, so
that what differs is the order of sums only; deterministic mode must give equal bits in all ways.
"""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from banyan_core.model_spec import kv_layout
from banyan_engine import tiny_families as families
from banyan_engine.flat_forward import flat_forward
from banyan_engine.model import Model
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_model import write_random_model
from banyan_engine.reference import reference_logits
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.tiled_forward import tiled_forward
from banyan_engine.weights import load_weights

FORWARDS = {"fast": flat_forward, "deterministic": tiled_forward}
TOLERANCE = 1e-4
CLEAR_MARGIN = 1e-3
NUM_TOKENS = 75
BLOCK_SIZE = 16
NUM_BLOCKS = 32
TABLE = (9, 4, 7, 1, 12)
OTHER_TABLE = (3, 20, 5, 19, 2)

every_model = pytest.mark.parametrize("name", families.NAMES)
every_forward = pytest.mark.parametrize("numerics", FORWARDS)


@dataclass(frozen=True)
class Case:
    """A model, its tokens, and their logits as transformers computes them."""

    folder: Path
    model: Model
    token_ids: tuple[int, ...]
    wanted: Tensor


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def made(name: str) -> Case:
        seed = families.NAMES.index(name)
        folder = write_random_model(
            tmp_path_factory.mktemp("family"), families.config_of(name), seed
        )
        generator = torch.Generator().manual_seed(seed)
        token_ids = tuple(
            torch.randint(3, families.VOCAB_SIZE, (NUM_TOKENS,), generator=generator).tolist()
        )
        spec = read_spec(folder)
        model = Model(spec, load_weights(folder, spec, torch.float32))
        return Case(folder, model, token_ids, as_transformers_does(folder, token_ids))

    return made


def as_transformers_does(folder: Path, token_ids: tuple[int, ...]) -> Tensor:
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def new_pool(model: Model) -> PagedKv:
    return PagedKv(kv_layout(model.spec, "float32"), NUM_BLOCKS, BLOCK_SIZE)


def span(case: Case, start: int, end: int, table: tuple[int, ...] = TABLE) -> Span:
    """Positions of a case's sequence; logits of all of them are wanted."""
    token_ids = torch.tensor(case.token_ids[start:end])
    return Span(token_ids, start, torch.tensor(table), end - start)


def compute(numerics: str, model: Model, kv: PagedKv, spans: list[Span]) -> Tensor:
    with torch.inference_mode():
        return FORWARDS[numerics](model, kv, spans, lambda _: None)


def in_cuts(
    numerics: str,
    case: Case,
    kv: PagedKv,
    cuts: tuple[int, ...],
    start: int = 0,
    table: tuple[int, ...] = TABLE,
) -> Tensor:
    """Logits of positions `start` on, computed up to each of `cuts` in turn."""
    parts = []
    for end in cuts:
        parts.append(compute(numerics, case.model, kv, [span(case, start, end, table)]))
        start = end
    return torch.cat(parts)


@every_model
def test_the_reference_agrees_with_transformers(name: str, case: Callable[[str], Case]) -> None:
    one = case(name)
    assert float((reference_logits(one.model, one.token_ids) - one.wanted).abs().max()) < TOLERANCE
    best = one.wanted.topk(2).values
    assert ((best[:, 0] - best[:, 1]) > CLEAR_MARGIN).float().mean() >= 0.95


def whole(numerics: str, case: Case) -> tuple[Tensor, int]:
    return in_cuts(numerics, case, new_pool(case.model), (NUM_TOKENS,)), 0


def chunked(numerics: str, case: Case) -> tuple[Tensor, int]:
    """Ragged chunks, then single steps as decode makes them."""
    cuts = (1, 15, 17, 48, *range(49, 60), NUM_TOKENS)
    return in_cuts(numerics, case, new_pool(case.model), cuts), 0


def prefix_hit(numerics: str, case: Case) -> tuple[Tensor, int]:
    """Two full blocks that another sequence computed, in the same pool."""
    kv = new_pool(case.model)
    in_cuts(numerics, case, kv, (40,))
    table = (*TABLE[:2], 21, 22, 23)
    return in_cuts(numerics, case, kv, (33, NUM_TOKENS), 32, table), 32


def mixed_batch(numerics: str, case: Case) -> tuple[Tensor, int]:
    """Chunks and decodes beside two other sequences, which are elsewhere in the same tokens."""
    kv, model = new_pool(case.model), case.model
    tables = (OTHER_TABLE, TABLE, (24, 25, 26, 27, 28))
    compute(numerics, model, kv, [span(case, 0, 20, tables[0]), span(case, 0, 30, tables[2])])
    cuts = (0, 10, 11, 12, 60, 61, NUM_TOKENS)
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        first = span(case, 20 + number, 21 + number, tables[0])
        last = span(case, 30 + number, 31 + number, tables[2])
        if end == NUM_TOKENS:
            first = span(case, 20 + number, 50, tables[0])
        logits = compute(numerics, model, kv, [first, span(case, start, end), last])
        parts.append(logits[first.num_sampled : -1])
    return torch.cat(parts), 0


def resumed(numerics: str, case: Case) -> tuple[Tensor, int]:
    """Preempted after some output; others used its blocks, and it is computed anew elsewhere."""
    kv = new_pool(case.model)
    in_cuts(numerics, case, kv, (50, 51, 52, 53))
    poison = Span(torch.full((80,), 5), 0, torch.tensor(OTHER_TABLE[::-1]), 1)
    compute(numerics, case.model, kv, [poison])
    return in_cuts(numerics, case, kv, (54, 55, NUM_TOKENS), 0, OTHER_TABLE), 0


WAYS = {
    "chunked": chunked,
    "prefix hit": prefix_hit,
    "mixed batch": mixed_batch,
    "resumed": resumed,
}


def check(found: Tensor, start: int, case: Case) -> None:
    wanted = case.wanted[start:]
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < TOLERANCE
    best = wanted.topk(2).values
    clear = best[:, 0] - best[:, 1] > CLEAR_MARGIN
    assert torch.equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])


@every_model
@every_forward
def test_every_way_agrees_with_transformers(
    name: str, numerics: str, case: Callable[[str], Case]
) -> None:
    one = case(name)
    yardstick, _ = whole(numerics, one)
    check(yardstick, 0, one)
    for way, compute_so in WAYS.items():
        logits, start = compute_so(numerics, one)
        check(logits, start, one)
        if numerics == "deterministic":
            assert torch.equal(logits, yardstick[start:]), way


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from tests.engine.test_families import continue_there
continue_there(*sys.argv[1:])
"""


def continue_there(received: str, made: str) -> None:
    """In the other process: for each model import its blocks and compute what follows them."""
    tensors, results = load_file(received), {}
    for path in {key.rsplit("|", 2)[0]: None for key in tensors}:
        folder, numerics = path.rsplit("|", 1)
        spec = read_spec(Path(folder))
        model = Model(spec, load_weights(Path(folder), spec, torch.float32))
        token_ids = tuple(tensors[f"{path}|tokens|"].tolist())
        one, kv = Case(Path(folder), model, token_ids, torch.empty(0)), new_pool(model)
        for block, layer in itertools.product(range(3), range(spec.num_layers)):
            page = tensors[f"{path}|{block}|{layer}"].numpy().tobytes()
            kv.import_page(OTHER_TABLE[block], layer, page)
        results[path] = in_cuts(numerics, one, kv, (49, NUM_TOKENS), 48, OTHER_TABLE)
    save_file(results, made)


def test_blocks_moved_to_another_process_continue_there(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    """Three full blocks of each model travel as bytes, into other block ids."""
    sent: dict[str, Tensor] = {}
    yardsticks: dict[str, tuple[str, Tensor]] = {}
    for name, numerics in itertools.product(families.NAMES, FORWARDS):
        one = case(name)
        path, kv = f"{one.folder}|{numerics}", new_pool(one.model)
        yardsticks[path] = name, in_cuts(numerics, one, kv, (NUM_TOKENS,))
        sent[f"{path}|tokens|"] = torch.tensor(one.token_ids)
        for block, layer in itertools.product(range(3), range(one.model.spec.num_layers)):
            page = bytearray(kv.export_page(TABLE[block], layer))
            sent[f"{path}|{block}|{layer}"] = torch.frombuffer(page, dtype=torch.uint8)
    save_file(sent, tmp_path / "sent")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "sent"), str(tmp_path / "made")]
    subprocess.run(command, check=True, timeout=100)
    made = load_file(tmp_path / "made")
    assert made.keys() == yardsticks.keys()
    for path, (name, yardstick) in yardsticks.items():
        check(made[path], 48, case(name))
        if path.endswith("deterministic"):
            assert torch.equal(made[path], yardstick[48:]), name
