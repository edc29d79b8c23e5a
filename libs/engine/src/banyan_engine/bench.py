"""Tokens per second of one runner on this machine: `python -m banyan_engine.bench --help`.

Random weights serve as well as trained ones here. A prefill figure is one prompt in chunks; a
decode figure is many sequences that each got their context in advance. The best of some rounds
is printed: on a shared machine the others measure the neighbours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from banyan_core.runner import Opening, PlanItem, StepPlan
from banyan_core.types import SamplingParams
from banyan_engine.random_model import TINY_CONFIG, write_random_model
from banyan_engine.torch_runner import NUMERICS, TorchRunner

DEMO_SIZED_CONFIG = TINY_CONFIG | {
    "vocab_size": 1500,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
BLOCK_SIZE = 16
CHUNK_TOKENS = 512
NUM_ROUNDS = 5
NUM_DECODE_STEPS = 8
PROMPT_LENGTHS = (512, 2048)
DECODE_SHAPES = ((1, 256), (1, 2048), (8, 256), (32, 256), (8, 2048))
"""Sequences, tokens of context of each."""


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(prog="python -m banyan_engine.bench")
    parser.add_argument("--numerics", choices=sorted(NUMERICS), default="fast")
    parser.add_argument("--threads", type=int, default=1)
    choices = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_model(Path(name), DEMO_SIZED_CONFIG, seed=0)
        num_blocks = max(count * (context // BLOCK_SIZE + 1) for count, context in DECODE_SHAPES)
        runner = TorchRunner(
            folder,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            numerics=choices.numerics,
            num_threads=choices.threads,
        )
    for length in PROMPT_LENGTHS:
        rate = length / _best_s(partial(_prefill, runner, length))
        print(f"prefill {length:5d} tokens in chunks of {CHUNK_TOKENS}: {rate:8.0f} tokens/s")
    for count, context in DECODE_SHAPES:
        seconds = _best_s(partial(_decode, runner, count, context))
        rate = count * NUM_DECODE_STEPS / seconds
        print(f"decode {count:3d} sequences at {context:5d} tokens:  {rate:8.0f} tokens/s")


def _best_s(measured: Callable[[], None]) -> float:
    durations = []
    for _ in range(NUM_ROUNDS):
        began = time.perf_counter()
        measured()
        durations.append(time.perf_counter() - began)
    return min(durations)


def _prefill(runner: TorchRunner, num_tokens: int) -> None:
    for start in range(0, num_tokens, CHUNK_TOKENS):
        end = min(start + CHUNK_TOKENS, num_tokens)
        item = _item(0, start, end - start, 0, num_tokens, sample=end == num_tokens)
        runner.run(StepPlan(1, (item,)), lambda layer: None)


def _decode(runner: TorchRunner, num_sequences: int, context: int) -> None:
    """The steps that end a context; the KV before them is zeros, which cost the same."""
    for start in range(context - NUM_DECODE_STEPS, context):
        items = (_item(n, start, 1, n, context, sample=True) for n in range(num_sequences))
        runner.run(StepPlan(1, tuple(items)), lambda layer: None)


def _item(
    number: int, start: int, num_tokens: int, place: int, length: int, *, sample: bool
) -> PlanItem:
    num_blocks = -(-length // BLOCK_SIZE)
    return PlanItem(
        sequence_id=f"sequence-{number}",
        token_ids=tuple(range(1, num_tokens + 1)),
        start=start,
        sample=sample,
        opening=Opening(
            prompt_token_ids=(),
            output_token_ids=(),
            block_table=tuple(range(place * num_blocks, (place + 1) * num_blocks)),
            sampling=SamplingParams(temperature=0.0),
        ),
    )


if __name__ == "__main__":
    main()
