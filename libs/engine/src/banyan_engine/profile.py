"""Where the time of a decode step goes: `python -m banyan_engine.profile FOLDER --sequences 32`.

For steps that the compiled helper computes in one call (`whole_layers`). With one thread it is CPU
time, which neighbours touch least; with more it is the clock's, and the waiting of threads for
each other is in the parts. The KV before the steps is zeros, which cost the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from banyan_core.runner import Opening, PlanItem, Sampled, StepPlan
from banyan_core.types import SamplingParams
from banyan_engine.draw import Logits
from banyan_engine.kernels.native import loader
from banyan_engine.sequence_state import SequenceState
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.whole_layers import PARTS, PartSeconds, whole_layers

BLOCK_SIZE = 16
NUM_WARM, NUM_STEPS = 8, 30
COMPILE_TIMEOUT_S = 300.0


def main() -> None:
    """Print the median step, part by part."""
    parser = argparse.ArgumentParser(prog="python -m banyan_engine.profile")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    loader.wait(COMPILE_TIMEOUT_S)
    blocks_each = -(-(asked.context + NUM_WARM + NUM_STEPS) // BLOCK_SIZE)
    runner = ProfiledRunner(
        asked.folder,
        num_blocks=asked.sequences * blocks_each,
        block_size=BLOCK_SIZE,
        num_threads=asked.threads,
    )
    for step in range(NUM_WARM):
        runner.run(_plan(asked.sequences, asked.context, step, blocks_each), lambda layer: None)
    steps = [
        runner.profiled(_plan(asked.sequences, asked.context, NUM_WARM + step, blocks_each))
        for step in range(NUM_STEPS)
    ]
    whole = median(sum(step.values()) for step in steps)
    for part in steps[0]:
        taken = median(step[part] for step in steps)
        print(f"{part:32s} {taken * 1e3:9.3f} ms {taken / whole:6.1%}")
    print(f"{'step':32s} {whole * 1e3:9.3f} ms")


class ProfiledRunner(TorchRunner):
    """One that knows what its last step took."""

    _sampling_s = 0.0

    def profiled(self, plan: StepPlan) -> dict[str, float]:
        """Seconds of a step, part by part."""
        layers = whole_layers(self._model, self._kv, ())
        if layers is None or loader.library is None:
            raise SystemExit(f"layers go one by one: helper {loader.status}")
        layers.seconds = PartSeconds()
        began = _now()
        self.run(plan, lambda layer: None)
        whole = _now() - began
        parts = dict(zip(PARTS, layers.seconds, strict=True)) | {"sampling": self._sampling_s}
        return parts | {"Python, torch": whole - sum(parts.values())}

    def _sample(
        self, logits: Logits, items: Sequence[PlanItem], states: Sequence[SequenceState]
    ) -> tuple[Sampled, ...]:
        began = _now()
        found = super()._sample(logits, items, states)
        self._sampling_s = _now() - began
        return found


def _now() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _plan(sequences: int, context: int, step: int, blocks_each: int) -> StepPlan:
    return StepPlan(1, tuple(_item(n, context + step, step, blocks_each) for n in range(sequences)))


def _item(number: int, position: int, step: int, blocks_each: int) -> PlanItem:
    blocks = range(number * blocks_each, (number + 1) * blocks_each)
    opening = Opening((), (), tuple(blocks), SamplingParams(temperature=0.0))
    return PlanItem(
        sequence_id=str(number),
        token_ids=(1 + step,),
        start=position,
        sample=True,
        opening=None if step else opening,
    )


if __name__ == "__main__":
    main()
