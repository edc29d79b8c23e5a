"""Grammars in the runner: masks in the draw, states from the output, errors of one sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from banyan_core.masks import MaskState
from banyan_core.runner import Opening, PlanItem, Sampled, StepPlan
from banyan_core.types import Grammar, GrammarKind, SamplingParams
from banyan_engine.torch_runner import TorchRunner

END = 2
MakeFolder = Callable[..., Path]


@dataclass
class Spelled:
    """A grammar of one sentence: these tokens in this order, then the end token."""

    sentence: tuple[int, ...]
    place: int = 0

    @property
    def is_finished(self) -> bool:
        return self.place > len(self.sentence)

    def fill(self, row: memoryview) -> None:
        token = (*self.sentence, END)[self.place]
        row[token // 32] = 1 << token % 32

    def advance(self, token_ids: Sequence[int]) -> bool:
        right = (*self.sentence, END)[self.place : self.place + len(token_ids)] == (*token_ids,)
        self.place += len(token_ids) if right else 0
        return right

    def rollback(self, num_tokens: int) -> None:
        self.place -= num_tokens


class Sentences:
    """Opens `Spelled`; a grammar's text is the tokens."""

    def open(self, grammar: Grammar, output_token_ids: Sequence[int]) -> MaskState:
        state = Spelled(tuple(int(word) for word in grammar.text.split()))
        if not state.advance(output_token_ids):
            raise ValueError(f"output {list(output_token_ids)} is not in it")
        return state


def asking(text: str) -> SamplingParams:
    return SamplingParams(seed=1, grammar=Grammar(GrammarKind.LARK, text))


@pytest.fixture
def runner(model_folder: MakeFolder) -> TorchRunner:
    return TorchRunner(model_folder(), num_blocks=8, mask_source=Sentences())


def one(runner: TorchRunner, *items: PlanItem) -> tuple[Sampled, ...]:
    return runner.run(StepPlan(1, items), lambda _: None).sampled


def test_a_grammar_leads_and_its_neighbour_is_free(
    runner: TorchRunner, script: Any, random_tokens: Any
) -> None:
    free = script("free", random_tokens(5, seed=2), (1,), SamplingParams(seed=1)).item(0, 5)
    (alone,) = one(runner, free)
    item = script("s", random_tokens(5, seed=1), (0,), asking("40 7 33 96")).item(0, 5)
    said = []
    for position in range(5, 10):
        sampled, other = one(runner, item, free)
        assert other == alone
        said.append(sampled.tokens[0].token_id)
        assert sampled.finished == (said[-1] == END)
        item = PlanItem("s", (said[-1],), position, True)
    assert said == [40, 7, 33, 96, END]


def test_a_state_opens_from_the_output_so_far(runner: TorchRunner, random_tokens: Any) -> None:
    prompt = random_tokens(5, seed=1)
    opening = Opening(prompt, (40, 7), (0,), asking("40 7 33"))
    (sampled,) = one(runner, PlanItem("s", (*prompt, 40, 7), 0, True, opening=opening))
    assert sampled.tokens[0].token_id == 33


@pytest.mark.parametrize(
    ("text", "output", "error"),
    [
        ("nonsense", (), "grammar: invalid literal for int"),
        ("40 7", (7,), "grammar: output [7] is not in it"),
    ],
)
def test_a_bad_grammar_fails_its_own_sequence(
    text: str, output: tuple[int, ...], error: str, runner: TorchRunner, random_tokens: Any
) -> None:
    prompt = random_tokens(5, seed=1)
    opening = Opening(prompt, output, (0,), asking(text))
    item = PlanItem("s", (*prompt, *output), 0, True, opening=opening)
    free = Opening(prompt, (), (1,), SamplingParams())
    failed, well = one(runner, item, PlanItem("t", prompt, 0, True, opening=free))
    assert failed.tokens == () and failed.error.startswith(error)
    assert well.tokens


def test_an_engine_without_grammars_says_so(
    model_folder: MakeFolder, script: Any, random_tokens: Any
) -> None:
    item = script("s", random_tokens(5, seed=1), (0,), asking("40")).item(0, 5)
    (sampled,) = one(TorchRunner(model_folder(), num_blocks=8), item)
    assert sampled.error == "grammar: this engine was started without grammars"
    greedy = replace(asking(""), grammar=None)
    free = Opening(item.token_ids, (), (0,), greedy)
    (sampled,) = one(TorchRunner(model_folder(), num_blocks=8), replace(item, opening=free))
    assert sampled.tokens
