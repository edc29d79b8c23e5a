"""How often fast mode says another token after a resume: `python -m banyan_engine.drift FOLDER`.

Greedy answers are decoded one token at a time. Then, for each index of an answer, a second pool
computes prompt and answer so far as one chunk, as a worker does that takes over, and says its
next token. A token that differs is one that a client would have got after a crash at that index
and not without it. Tokens already sent stand in any case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import SamplingParams
from banyan_engine.spec import read_spec
from banyan_engine.torch_runner import NUMERICS, TorchRunner

PROMPT_TOKENS = 128
ANSWER_TOKENS = 64
BLOCK_SIZE = 16
NUM_BLOCKS = -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_SIZE)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(prog="python -m banyan_engine.drift")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--numerics", choices=sorted(NUMERICS), default="fast")
    parser.add_argument("--prompts", type=int, default=20)
    choices = parser.parse_args()
    first, second = (
        TorchRunner(choices.folder, num_blocks=NUM_BLOCKS, numerics=choices.numerics)
        for _ in range(2)
    )
    vocab_size = read_spec(choices.folder).vocab_size
    num_differing = sum(
        _count_differing(first, second, _random_prompt(vocab_size, seed))
        for seed in range(choices.prompts)
    )
    num_tokens = choices.prompts * ANSWER_TOKENS
    print(f"{choices.numerics}: {num_differing} of {num_tokens} tokens differ after a resume")


def _count_differing(first: TorchRunner, second: TorchRunner, prompt: tuple[int, ...]) -> int:
    tokens = [*prompt, _next_token(first, prompt, 0)]
    while len(tokens) < len(prompt) + ANSWER_TOKENS:
        tokens.append(_next_token(first, tuple(tokens), len(tokens) - 1))
    return sum(
        _next_token(second, tuple(tokens[:end]), 0) != tokens[end]
        for end in range(len(prompt), len(tokens))
    )


def _next_token(runner: TorchRunner, token_ids: tuple[int, ...], start: int) -> int:
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


def _random_prompt(vocab_size: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocab_size, (PROMPT_TOKENS,), generator=generator).tolist())


if __name__ == "__main__":
    main()
