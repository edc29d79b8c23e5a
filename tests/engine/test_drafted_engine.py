"""The whole engine over a real model: drafts, forks and crowding change no token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import EngineFact, Report, RunStep, StepDone, Submit
from banyan_core.hashing import block_hashes
from banyan_core.scheduler import EngineLimits
from banyan_core.types import ModelCard, OutputToken, SamplingParams, SequenceSpec
from banyan_engine.torch_runner import TorchRunner

BLOCK_SIZE = 4
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.6, seed=11, max_tokens=40, ignore_eos=True, frequency_penalty=0.2, logprobs=True
)


def spec(name: str, prompt: tuple[int, ...], sampling: SamplingParams) -> SequenceSpec:
    return SequenceSpec(name, "g", 1, b"", prompt, (), sampling, b"salt")


class Ran:
    """An engine, run until all that was submitted has ended."""

    def __init__(
        self, runner: TorchRunner, specs: Sequence[SequenceSpec], limits: EngineLimits
    ) -> None:
        card = ModelCard("m", b"", b"", 512, (2,), BLOCK_SIZE, runner.layout, "deterministic")
        self.loop = EngineLoop(card, runner.num_blocks, limits)
        self.tokens: dict[str, list[OutputToken]] = {}
        self.num_steps = self.num_right = self.num_copies = 0
        facts: list[EngineFact] = [Submit(one, hold=False) for one in specs]
        while facts:
            commands, facts = self.loop.step(0, facts).commands, []
            self.loop.check_invariants()
            for command in commands:
                if isinstance(command, Report):
                    for one in command.sequences:
                        assert not one.error
                        self.tokens.setdefault(one.sequence_id, []).extend(one.tokens)
                        self.num_right += max(0, len(one.tokens) - 1)
                if isinstance(command, RunStep):
                    self.num_steps += 1
                    self.num_copies += len(command.plan.copies)
                    result = runner.run(command.plan, lambda layer: None)
                    facts = [StepDone(result, 1_000_000)]
        assert self.loop.idle and self.loop.num_used_blocks == 0


def new_runner(folder: Path, num_blocks: int = 128) -> TorchRunner:
    return TorchRunner(
        folder, num_blocks=num_blocks, block_size=BLOCK_SIZE, numerics="deterministic"
    )


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("num_blocks", [128, 22], ids=["room", "crowded"])
def test_tokens_are_equal_with_and_without_drafts(
    sampling: SamplingParams,
    num_blocks: int,
    model_folder: Callable[..., Path],
    random_tokens: Any,
) -> None:
    specs = [
        spec(f"r{n}/0/0", random_tokens(6, seed=n) * 2, replace(sampling, seed=n)) for n in range(3)
    ]
    plain, drafted = (
        Ran(new_runner(model_folder(), num_blocks), specs, EngineLimits(max_draft_tokens=most))
        for most in (0, 4)
    )
    assert drafted.tokens == plain.tokens
    if sampling is GREEDY:
        assert drafted.num_right > 0
    if num_blocks < 100:
        assert drafted.loop.totals.num_preemptions > 0
    true = {
        block_hash
        for one in specs
        for block_hash in block_hashes(
            (*one.prompt_token_ids, *(t.token_id for t in plain.tokens[one.sequence_id])),
            BLOCK_SIZE,
            b"salt",
        )
    }
    assert set(drafted.loop.cached_hashes()) <= true


@pytest.mark.parametrize("num_prompt", [3, 9, 12])
def test_choices_that_fork_say_what_each_alone_says(
    num_prompt: int, model_folder: Callable[..., Path], random_tokens: Any
) -> None:
    prompt = random_tokens(num_prompt, seed=5)
    specs = [spec(f"r/{n}/0", prompt, replace(SEEDED, seed=n, max_tokens=12)) for n in range(3)]
    together = Ran(new_runner(model_folder()), specs, EngineLimits())
    assert together.num_copies == (2 if num_prompt % BLOCK_SIZE != 1 else 0)
    for one in specs:
        alone = Ran(new_runner(model_folder()), [one], EngineLimits())
        assert together.tokens[one.sequence_id] == alone.tokens[one.sequence_id]
