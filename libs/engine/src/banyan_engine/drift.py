"""How often fast mode says another token than deterministic mode: `python -m banyan_engine.drift`.

Deterministic mode decodes greedy answers. For each index of an answer fast mode is given the same
tokens before it and says its next one, in two ways: decoding along, one token at a time, and
resumed, with prompt and answer so far as one chunk, as a worker does that takes over. A token
that differs is one that a client could get here and not there. Tokens already sent stand in any
case. Weights are random in all but the demo model: their margins are those of no trained model,
so their rates compare families and types, and are no forecast.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import SamplingParams
from banyan_engine import tiny_families
from banyan_engine.demo import model_folder
from banyan_engine.random_model import write_random_model
from banyan_engine.spec import read_spec
from banyan_engine.torch_runner import TorchRunner

PROMPT_TOKENS = 64
ANSWER_TOKENS = 64
BLOCK_SIZE = 16
NUM_BLOCKS = -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_SIZE)
DTYPES = ("float32", "bfloat16")
HEADER = "| model | tokens | " + " | ".join(
    f"{dtype}, {way}" for dtype in DTYPES for way in ("decoding", "resumed")
)


class Drift(NamedTuple):
    """Tokens said, and how many of them differ, by type and way in the order of HEADER."""

    num_tokens: int
    differing: tuple[int, ...]

    def plus(self, other: Drift) -> Drift:
        sums = (a + b for a, b in zip(self.differing, other.differing, strict=True))
        return Drift(self.num_tokens + other.num_tokens, tuple(sums))


NOTHING = Drift(0, (0,) * 2 * len(DTYPES))


def main() -> None:
    """Print a table in Markdown: a line per family, or for the folder that is given."""
    parser = argparse.ArgumentParser(prog="python -m banyan_engine.drift")
    parser.add_argument("folder", type=Path, nargs="?", help="a model; without it all families")
    parser.add_argument("--prompts", type=int, default=4, help="per model")
    choices = parser.parse_args()
    print(f"{HEADER} |\n|---|{'---:|' * (1 + 2 * len(DTYPES))}")
    if choices.folder is not None:
        print(_line(choices.folder.name, measure(choices.folder, choices.prompts)))
        return
    for family in tiny_families.FAMILIES:
        total = NOTHING
        for folder in _random_models(family):
            total = total.plus(measure(folder, choices.prompts))
        print(_line(family, total), flush=True)
    print(_line("demo model", measure(model_folder(), choices.prompts)))


def measure(folder: Path, num_prompts: int) -> Drift:
    """Count over random prompts."""
    vocab_size = read_spec(folder).vocab_size
    judge = TorchRunner(folder, num_blocks=NUM_BLOCKS, numerics="deterministic")
    answers = [_answer(judge, _random_prompt(vocab_size, seed)) for seed in range(num_prompts)]
    differing = []
    for dtype in DTYPES:
        runner = TorchRunner(folder, num_blocks=NUM_BLOCKS, dtype=dtype, kv_dtype=dtype)
        for resumed in (False, True):
            differing.append(sum(_count(runner, tokens, resumed) for tokens in answers))
    return Drift(num_prompts * ANSWER_TOKENS, tuple(differing))


def _answer(runner: TorchRunner, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """The prompt with what greedy decoding makes of it, one token at a time."""
    tokens, start = prompt, 0
    while len(tokens) < PROMPT_TOKENS + ANSWER_TOKENS:
        token = _next_token(runner, tokens, start)
        tokens, start = (*tokens, token), len(tokens)
    return tokens


def _count(runner: TorchRunner, tokens: tuple[int, ...], resumed: bool) -> int:
    """At how many indexes of the answer the runner would say another token."""
    num_differing, start = 0, 0
    for end in range(PROMPT_TOKENS, len(tokens)):
        num_differing += _next_token(runner, tokens[:end], start) != tokens[end]
        start = 0 if resumed else end
    return num_differing


def _next_token(runner: TorchRunner, token_ids: tuple[int, ...], start: int) -> int:
    """The greedy token after these, of which those before `start` are in the cache."""
    item = PlanItem(
        sequence_id="sequence",
        token_ids=token_ids[start:],
        start=start,
        sample=True,
        opening=Opening(token_ids, (), tuple(range(NUM_BLOCKS)), SamplingParams(temperature=0.0)),
    )
    (sampled,) = runner.run(StepPlan(1, (item,)), lambda layer: None).sampled
    if not sampled.tokens:
        raise SystemExit(f"folder: expected a model with finite logits: {sampled.error}")
    return sampled.tokens[0].token_id


def _random_models(family: str) -> Iterator[Path]:
    for name in tiny_families.NAMES:
        if name.split("-")[0] == family:
            with tempfile.TemporaryDirectory() as folder:
                yield write_random_model(Path(folder), tiny_families.config_of(name), seed=0)


def _random_prompt(vocab_size: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab_size, (PROMPT_TOKENS,), generator=generator).tolist())


def _line(name: str, drift: Drift) -> str:
    shares = (f"{100 * number / drift.num_tokens:.2f} %" for number in drift.differing)
    return f"| {name} | {drift.num_tokens:,} | " + " | ".join(shares) + " |"


if __name__ == "__main__":
    main()
