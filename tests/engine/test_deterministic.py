"""Deterministic mode: equal bits of logits and KV, however the work is cut and shared out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banyan_core.runner import StepPlan
from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.torch_runner import TorchRunner

NUM_TOKENS = 120
BLOCK_SIZE = 16
NUM_BLOCKS = 64
VOCAB_SIZE = 97

Observed = tuple[dict[int, OutputToken], list[bytes]]
"""Full distributions after some positions, and the pages of all full blocks."""


def sampling() -> SamplingParams:
    """Seeded drawing, and log probabilities of the whole vocabulary: logits in disguise."""
    return SamplingParams(temperature=0.8, seed=7, logprobs=True, num_top_logprobs=VOCAB_SIZE)


def new_runner(folder: Path, numerics: str = "deterministic") -> TorchRunner:
    return TorchRunner(
        folder,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        numerics=numerics,
        dtype="float32",
        kv_dtype="float32",
    )


def run_cut(runner: TorchRunner, sequence: Any, ends: list[int], start: int = 0) -> Observed:
    """Compute up to each of `ends` in turn; what was seen."""
    tokens: dict[int, OutputToken] = {}
    for end in ends:
        plan = StepPlan(1, (sequence.item(start, end),))
        (sampled,) = runner.run(plan, lambda _: None).sampled
        assert sampled.tokens
        tokens[end], start = sampled.tokens[0], end
    return tokens, pages(runner, sequence)


def pages(runner: TorchRunner, sequence: Any) -> list[bytes]:
    full_blocks = sequence.block_table[: len(sequence.token_ids) // BLOCK_SIZE]
    layers = range(runner.layout.num_layers)
    return [runner.export_page(block, layer) for block in full_blocks for layer in layers]


@pytest.fixture(scope="module")
def one_by_one(model_folder: Callable[..., Path], random_tokens: Any, script: Any) -> Observed:
    """The yardstick: every token by its own decode step, alone in a runner."""
    sequence = script("s", random_tokens(NUM_TOKENS, seed=1), tuple(range(8)), sampling())
    return run_cut(new_runner(model_folder()), sequence, list(range(1, NUM_TOKENS + 1)))


def assert_same(found: Observed, wanted: Observed) -> None:
    for end, token in found[0].items():
        assert token == wanted[0][end], f"position {end}"
    assert found[1] == wanted[1]


cuts = st.lists(st.integers(1, NUM_TOKENS - 1), max_size=12, unique=True)
block_tables = st.permutations(range(NUM_BLOCKS)).map(lambda blocks: tuple(blocks[:8]))
few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@few
@given(cuts=cuts, block_table=block_tables)
def test_any_chunking_gives_the_bits_of_one_by_one_decode(
    cuts: list[int],
    block_table: tuple[int, ...],
    one_by_one: Observed,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    sequence = script("s", random_tokens(NUM_TOKENS, seed=1), block_table, sampling())
    found = run_cut(new_runner(model_folder()), sequence, [*sorted(cuts), NUM_TOKENS])
    assert_same(found, one_by_one)


@few
@given(data=st.data())
def test_any_company_in_the_batch_gives_the_same_bits(
    data: st.DataObject,
    one_by_one: Observed,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    """Other sequences of random lengths step along, in random order, at random paces."""
    runner = new_runner(model_folder())
    waiting = [script("s", random_tokens(NUM_TOKENS, seed=1), tuple(range(8)), sampling())]
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        length = data.draw(st.integers(1, NUM_TOKENS))
        blocks = tuple(range(8 * number, 8 * number + 8))
        waiting.append(script(f"s{number}", random_tokens(length, seed=number), blocks))
    watched = waiting[0]
    tokens: dict[int, OutputToken] = {}
    done = dict.fromkeys((sequence.sequence_id for sequence in waiting), 0)
    while done["s"] < NUM_TOKENS:
        items = []
        for sequence in data.draw(st.permutations(waiting)):
            start = done[sequence.sequence_id]
            num_tokens = data.draw(st.sampled_from((1, 1, 7, 16, 33, 60)))
            end = min(start + num_tokens, len(sequence.token_ids))
            if end > start:
                items.append(sequence.item(start, end))
            done[sequence.sequence_id] = end
        for sampled in runner.run(StepPlan(1, tuple(items)), lambda _: None).sampled:
            if sampled.sequence_id == "s":
                assert sampled.tokens
                tokens[done["s"]] = sampled.tokens[0]
    assert_same((tokens, pages(runner, watched)), one_by_one)


@pytest.mark.parametrize("num_blocks", [1, 3, 7])
def test_pages_from_another_runner_give_the_same_bits(
    num_blocks: int,
    one_by_one: Observed,
    model_folder: Callable[..., Path],
    random_tokens: Any,
    script: Any,
) -> None:
    """A move, and a prefix hit: only full blocks travel, the rest is computed again."""
    token_ids = random_tokens(NUM_TOKENS, seed=1)
    source, target = new_runner(model_folder()), new_runner(model_folder())
    run_cut(source, script("a", token_ids, tuple(range(8))), [50, 113])
    # The target's blocks have had other tenants.
    run_cut(target, script("b", random_tokens(NUM_TOKENS, seed=2), tuple(range(8))), [NUM_TOKENS])
    table = (6, 2, 5, 1, 0, 3, 4, 7)
    for block in range(num_blocks):
        for layer in range(source.layout.num_layers):
            target.import_page(table[block], layer, source.export_page(block, layer))
    start = num_blocks * BLOCK_SIZE
    moved = script("c", token_ids, table, sampling())
    found = run_cut(target, moved, [start + 1, start + 2, NUM_TOKENS], start)
    assert_same(found, one_by_one)


def test_another_process_and_other_thread_settings_give_the_same_bits(
    one_by_one: Observed, model_folder: Callable[..., Path], random_tokens: Any
) -> None:
    """What a restart after a crash is. Its torch starts with two threads."""
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(2);"
        "from banyan_core.runner import *; from banyan_core.types import SamplingParams;"
        "from banyan_engine.torch_runner import TorchRunner;"
        f"ids = {random_tokens(NUM_TOKENS, seed=1)};"
        f"r = TorchRunner(Path(sys.argv[1]), num_blocks={NUM_BLOCKS}, numerics='deterministic');"
        f"o = Opening(ids, (), tuple(range(8)), {sampling()!r});"
        "i = PlanItem('s', ids, 0, True, opening=o);"
        "print(repr(r.run(StepPlan(1, (i,)), lambda _: None).sampled[0].tokens[0]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(model_folder())],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == repr(one_by_one[0][NUM_TOKENS])


@pytest.mark.parametrize("num_heads, num_kv_heads", [(8, 4), (6, 2)])
def test_demo_sized_layers_keep_their_bits_too(
    num_heads: int, num_kv_heads: int, tmp_path: Path, random_tokens: Any, script: Any
) -> None:
    """Libraries switch kernels by size, so one size proves little."""
    from banyan_engine.random_model import TINY_CONFIG, write_random_model

    config = TINY_CONFIG | {
        "hidden_size": 32 * num_heads,
        "intermediate_size": 648,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "vocab_size": 1501,
    }
    folder = write_random_model(tmp_path, config, seed=3)
    token_ids = random_tokens(400, seed=6)

    def observe(ends: list[int]) -> Observed:
        runner = TorchRunner(folder, num_blocks=25, numerics="deterministic")
        return run_cut(runner, script("s", token_ids, tuple(range(25)), sampling()), ends)

    whole, chunked = observe([400]), observe([15, 16, 17, 130, 389, 399, 400])
    assert whole[0][400] == chunked[0][400]
    assert whole[1] == chunked[1]


def test_the_yardstick_can_tell_modes_apart(
    one_by_one: Observed, model_folder: Callable[..., Path], random_tokens: Any, script: Any
) -> None:
    """Fast mode does differ in the last bits; if not, the tests above would prove nothing."""
    sequence = script("s", random_tokens(NUM_TOKENS, seed=1), tuple(range(8)), sampling())
    found = run_cut(new_runner(model_folder(), "fast"), sequence, [NUM_TOKENS])
    assert found[1] != one_by_one[1]
    assert torch.allclose(
        torch.tensor([value for _, value in found[0][NUM_TOKENS].top]),
        torch.tensor([value for _, value in one_by_one[0][NUM_TOKENS].top]),
        atol=1e-4,
    )
