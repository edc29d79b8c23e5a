"""Admission and batching policies on one modelled engine: `python load-tests/batching.py`.

The engine loop and the echo runner on virtual time: no clock, so the numbers are the same on any
machine. Output lengths are log-normal and known to nobody; a request counts for goodput when its
first token came within 10 s and the rest at 60 ms each. Prints two tables.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from banyan_core.echo import ECHO_LAYOUT, EchoLatency, EchoRunner
from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import EngineFact, Report, RunStep, StepDone, Submit
from banyan_core.policies import BATCHING, ENGINE_ADMISSION
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_MS, NS_PER_S, ModelCard, SamplingParams, SequenceSpec

BLOCK_SIZE, NUM_BLOCKS, CONTEXT = 16, 1250, 4096
LATENCY = EchoLatency(base_ns=25 * NS_PER_MS, token_ns=50_000, sequence_ns=800_000)
MAX_OUTPUT = 2048
TTFT_S, TPOT_S = 10.0, 0.06
RATES = (1.6, 2.0, 2.4, 3.0)
CARD = ModelCard("echo", b"", b"", CONTEXT, (), BLOCK_SIZE, ECHO_LAYOUT, "fast")


@dataclass(slots=True)
class Times:
    """When one request came, and when its tokens did."""

    arrived_ns: int
    token_ns: list[int] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return (self.token_ns[0] - self.arrived_ns) / NS_PER_S

    @property
    def is_good(self) -> bool:
        rest_s = (self.token_ns[-1] - self.token_ns[0]) / NS_PER_S
        return self.ttft_s <= TTFT_S and rest_s <= TPOT_S * max(1, len(self.token_ns) - 1)

    @property
    def gaps_s(self) -> list[float]:
        pairs = zip(self.token_ns, self.token_ns[1:], strict=False)
        return [(later - earlier) / NS_PER_S for earlier, later in pairs]


def requests(rate: float, duration_s: float, seed: int) -> list[tuple[int, Submit]]:
    """Arrivals, and what is asked: a token that repeats, and that ends it at a secret length."""
    rng = random.Random(seed)
    asked: list[tuple[int, Submit]] = []
    now_s = 0.0
    while (now_s := now_s + rng.expovariate(rate)) < duration_s:
        length = min(MAX_OUTPUT, max(1, round(rng.lognormvariate(5.3, 0.9))))
        sampling = SamplingParams(
            temperature=0.0, max_tokens=MAX_OUTPUT, min_tokens=length, stop_token_ids=(1,)
        )
        name = f"r{len(asked)}/0/0"
        prompt = (1,) * rng.randint(100, 600)
        spec = SequenceSpec(name, "", 0, b"", prompt, (), sampling, name.encode())
        asked.append((round(now_s * NS_PER_S), Submit(spec, hold=False)))
    return asked


def run(
    asked: Sequence[tuple[int, Submit]], limits: EngineLimits
) -> tuple[list[Times], EngineLoop, int]:
    """Each request's times, the engine, and when it was done."""
    loop = EngineLoop(CARD, NUM_BLOCKS, limits)
    runner = EchoRunner(NUM_BLOCKS, BLOCK_SIZE, LATENCY)
    times = {one.spec.sequence_id: Times(at_ns) for at_ns, one in asked}
    now, place = 0, 0
    done: StepDone | None = None
    while place < len(asked) or done is not None:
        if done is None:
            now = max(now, asked[place][0])
        facts: list[EngineFact] = [done] if done else []
        while place < len(asked) and asked[place][0] <= now:
            facts.append(asked[place][1])
            place += 1
        done = None
        for command in loop.step(now, facts).commands:
            if isinstance(command, Report):
                for one in command.sequences:
                    times[one.sequence_id].token_ns += [now] * len(one.tokens)
            if isinstance(command, RunStep):
                result = runner.run(command.plan, lambda layer: None)
                done = StepDone(result, result.modelled_ns)
                now += result.modelled_ns
    return list(times.values()), loop, now


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3)
    choices = parser.parse_args()
    print("| offered req/s | admission | evictions | goodput, req/s |\n|---|---|---:|---:|")
    for rate in RATES:
        loads = [requests(rate, choices.seconds, seed) for seed in range(choices.seeds)]
        for name, admission in ENGINE_ADMISSION.items():
            runs = [run(load, EngineLimits(admission=admission())) for load in loads]
            evictions = mean(loop.totals.num_preemptions for _, loop, _ in runs)
            good = mean(sum(t.is_good for t in times) / choices.seconds for times, _, _ in runs)
            print(f"| {rate} | {name} | {evictions:.0f} | {good:.2f} |", flush=True)
    print("\n| batching, 0.6 req/s | TTFT p50, s | p99 | gap p50, ms | p99 | longest |")
    print("|---|---:|---:|---:|---:|---:|")
    load = requests(0.6, choices.seconds, 0)
    for name, batching in BATCHING.items():
        times, _, _ = run(load, EngineLimits(batching=batching()))
        ttfts = sorted(t.ttft_s for t in times)
        gaps = sorted(1000 * gap for t in times for gap in t.gaps_s)
        first = f"{median(ttfts):.2f} | {ttfts[int(0.99 * len(ttfts))]:.2f}"
        between = f"{median(gaps):.0f} | {gaps[int(0.99 * len(gaps))]:.0f} | {gaps[-1]:.0f}"
        print(f"| {name} | {first} | {between} |")


if __name__ == "__main__":
    main()
