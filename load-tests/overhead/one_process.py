"""The engine alone: engine loop and torch runner in one process, called directly, no RPC around.

What `disaggregation.py` measures the mesh beside. A fixed number of sequences is always there: one
that ends is followed at once by the next. Digests, streams, store and HTTP do not exist here.

    python load-tests/overhead/one_process.py MODEL NUM_INPUT NUM_OUTPUT SETTLE_S WINDOW_S
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import EngineFact, Report, RunStep, StepDone, Submit
from banyan_core.runner import StepPlan
from banyan_core.scheduler import EngineLimits
from banyan_core.types import ModelCard, SamplingParams, SequenceSpec
from banyan_engine.torch_runner import TorchRunner
from banyan_text.card import read_card

BLOCK_SIZE = 16
NUM_SEQUENCES = 8
KV_BYTES = 512 << 20
TOKEN_IDS = range(16, 1024)
"""Of plain tokens in the demo tokenizer's vocabulary."""


def output_lengths(num_output: int) -> Iterator[int]:
    """What a client asks for: the first answers end one by one, as they would after a while."""
    for number in range(1, NUM_SEQUENCES + 1):
        yield num_output * number // NUM_SEQUENCES
    while True:
        yield num_output


def prompt(rng: random.Random, num_input: int) -> list[int]:
    """Random, so that no two share a block."""
    return rng.choices(TOKEN_IDS, k=num_input)


class Load:
    """Sequences that follow one another."""

    def __init__(self, card: ModelCard, num_input: int, num_output: int) -> None:
        self._card = card
        self._num_input = num_input
        self._lengths = output_lengths(num_output)
        self._rng = random.Random(num_input)
        self._num_made = 0

    def next(self) -> Submit:
        self._num_made += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=next(self._lengths), ignore_eos=True)
        spec = SequenceSpec(
            sequence_id=f"{self._num_made}/0/0",
            gateway_id="",
            gateway_epoch=0,
            card_digest=self._card.digest,
            prompt_token_ids=tuple(prompt(self._rng, self._num_input)),
            output_token_ids=(),
            sampling=sampling,
            salt=b"",
        )
        return Submit(spec, hold=False)


class Counts:
    """Tokens computed and sampled so far."""

    def __init__(self) -> None:
        self.num_prompt = 0
        self.num_output = 0
        self.num_steps = 0
        self.num_ended = 0

    def take_plan(self, engine: EngineLoop, plan: StepPlan) -> None:
        self.num_steps += 1
        self.num_prompt += sum(engine.num_prompt_tokens(item) for item in plan.items)

    def take_report(self, report: Report) -> int:
        """How many sequences ended."""
        self.num_output += sum(len(one.tokens) for one in report.sequences)
        num_ended = sum(one.finish is not None for one in report.sequences)
        self.num_ended += num_ended
        return num_ended


def measure(
    folder: Path, num_input: int, num_output: int, settle_s: float, window_s: float
) -> dict[str, float]:
    card = read_card(folder, BLOCK_SIZE, "fast")
    runner = TorchRunner(folder, kv_bytes=KV_BYTES, block_size=BLOCK_SIZE)
    engine = EngineLoop(card, runner.num_blocks, EngineLimits())
    load, counts = Load(card, num_input, num_output), Counts()
    facts: list[EngineFact] = [load.next() for _ in range(NUM_SEQUENCES)]
    begin = time.monotonic() + settle_s
    before: tuple[float, int, int, float, int] | None = None
    while True:
        now = time.monotonic()
        if before is None and now >= begin and counts.num_ended >= NUM_SEQUENCES:
            cpu_s = time.process_time()
            before = (now, counts.num_prompt, counts.num_output, cpu_s, counts.num_steps)
        if before is not None and now >= before[0] + window_s:
            break
        commands = engine.step(time.monotonic_ns(), facts).commands
        facts = []
        for command in commands:
            match command:
                case Report():
                    facts += [load.next() for _ in range(counts.take_report(command))]
                case RunStep(plan):
                    started_ns = time.monotonic_ns()
                    result = runner.run(plan, lambda layer: None)
                    counts.take_plan(engine, plan)
                    facts.insert(0, StepDone(result, time.monotonic_ns() - started_ns))
    elapsed_s = now - before[0]
    return {
        "output_tokens_per_s": (counts.num_output - before[2]) / elapsed_s,
        "prompt_tokens_per_s": (counts.num_prompt - before[1]) / elapsed_s,
        "steps_per_s": (counts.num_steps - before[4]) / elapsed_s,
        "cores": (time.process_time() - before[3]) / elapsed_s,
    }


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    num_in, num_out, settle, window = map(float, numbers)
    print(json.dumps(measure(Path(name), int(num_in), int(num_out), settle, window)))
