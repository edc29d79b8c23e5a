"""Full pools, crowds, steps that fail, rows without numbers: requests fail, never the engine."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.core.engines import BLOCK_SIZE, Bench, echoed, spec

from banyan_core.engine_messages import (
    Cancel,
    DrainNow,
    Release,
    Revoke,
    StepDone,
    StepFailed,
    Submit,
)
from banyan_core.policies.batching import BatchingPolicy, Chunked, DecodeFirst, PrefillFirst
from banyan_core.policies.engine_admission import PastFuture, Watermark
from banyan_core.runner import Sampled
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish, SamplingParams

NUM_WAITING = 200


def held(num_blocks: int) -> Bench:
    """An engine all of whose blocks are under a lease."""
    bench = Bench(num_blocks=num_blocks)
    prompt = tuple(range(num_blocks * BLOCK_SIZE))
    bench.feed(Submit(spec("held/0/0", prompt), hold=True))
    bench.run()
    assert bench.loop.load(0).num_free_blocks == 0
    return bench


def test_without_a_free_block_200_wait_and_all_run_when_there_is_one() -> None:
    bench = held(10)
    asked = [spec(f"r{n}/0/0", (n, n + 1, n + 2), max_tokens=3) for n in range(NUM_WAITING)]
    commands = bench.feed(*(Submit(one, hold=False) for one in asked))
    assert commands == [] and bench.loop.load(0).num_waiting == NUM_WAITING
    gone = asked[3:7]
    bench.feed(Cancel(tuple(one.sequence_id for one in gone)))
    assert all(bench.finish(one.sequence_id) is Finish.CANCELLED for one in gone)
    assert bench.plan is None
    bench.feed(Release(("held/0/0",)))
    bench.run(5000)
    for one in asked:
        assert one in gone or bench.output(one.sequence_id) == echoed(one)
    assert bench.loop.idle and bench.loop.num_used_blocks == 0


def test_a_prompt_longer_than_the_pool_fails_and_its_neighbours_do_not() -> None:
    bench = Bench(num_blocks=10)
    asked = spec("small/0/0", (1, 2, 3))
    huge = spec("huge/0/0", tuple(range(100)))
    bench.feed(Submit(asked, hold=False), Submit(huge, hold=False))
    bench.run()
    assert bench.finished["huge/0/0"].error == "100 tokens need 25 KV blocks; this worker has 10"
    assert bench.output("small/0/0") == echoed(asked)


def test_a_row_without_numbers_fails_its_sequence_alone() -> None:
    bench = Bench()
    asked = [spec(f"r{n}/0/0", (n, n + 1, n + 2)) for n in range(3)]
    bench.feed(*(Submit(one, hold=False) for one in asked))
    assert bench.plan is not None
    plan, bench.plan = bench.plan, None
    result = bench.runner.run(plan, lambda layer: None)
    sick = replace(result.sampled[1], tokens=(), error="logits: not finite")
    bench.feed(StepDone(replace(result, sampled=(result.sampled[0], sick)), 1))
    assert bench.finished["r1/0/0"].error == "logits: not finite"
    assert bench.finished["r2/0/0"].error == "the runner returned no token"
    bench.run()
    assert bench.output("r0/0/0") == echoed(asked[0])


class Storm:
    """Everything at once, drawn from one seed; the books are checked after each step."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        batchings: tuple[BatchingPolicy, ...] = (Chunked(), PrefillFirst(), DecodeFirst())
        limits = EngineLimits(
            max_step_tokens=self.rng.randint(4, 24),
            max_running=self.rng.randint(1, 4),
            max_draft_tokens=self.rng.choice((0, 4)),
            batching=self.rng.choice(batchings),
            admission=self.rng.choice((Watermark(), PastFuture(min_lengths=2))),
        )
        self.bench = Bench(self.rng.randint(5, 20), limits, goes_on=self.rng.random() < 0.8)
        self.asked: dict[str, tuple[int, ...]] = {}
        self.num_failed_steps = 0

    def submit(self) -> None:
        num, start = self.rng.randint(1, 30), self.rng.choice((0, 0, 40))
        prompt = tuple(start + place % self.rng.choice((3, 50)) for place in range(num))
        request = f"r{len(self.asked)}"
        for choice in range(self.rng.choice((1, 1, 3))):
            params = SamplingParams(
                temperature=self.rng.choice((0.0, 1.0)),
                seed=choice,
                max_tokens=self.rng.randint(1, 25),
                num_prompt_logprobs=self.rng.choice((None, None, None, 1)),
            )
            priority = self.rng.randint(0, 2)
            one = spec(f"{request}/{choice}/0", prompt, sampling=params, priority=priority)
            self.asked[one.sequence_id] = tuple(echoed(one))
            self.bench.feed(Submit(one, hold=self.rng.random() < 0.1))

    def step(self) -> None:
        bench = self.bench
        if bench.done is not None:
            bench.hear()
        plan = bench.plan
        if plan is None:
            return
        if self.rng.random() < 0.05:
            bench.plan = None
            self.num_failed_steps += 1
            bench.feed(StepFailed(plan.number, "out of memory"))
        elif self.rng.random() < 0.05:
            bench.plan = None
            result = bench.runner.run(plan, lambda layer: None)
            sick = tuple(Sampled(one.sequence_id, (), "NaN") for one in result.sampled)
            bench.feed(StepDone(replace(result, sampled=sick), 1))
        else:
            bench.advance(hears=self.rng.random() < 0.7)
        assert bench.runner.num_open <= bench.loop.load(0).num_running + 4

    def disturb(self) -> None:
        if self.rng.random() < 0.2:
            self.bench.feed(Cancel((self.rng.choice(list(self.asked)),)))
        if self.rng.random() < 0.3:
            self.bench.feed(Release(self.bench.loop.lease_ids()[:1]))
        if self.rng.random() < 0.02:
            self.bench.feed(DrainNow())


def storm_of(seed: int) -> Storm:
    storm = Storm(seed)
    for _ in range(60):
        if storm.rng.random() < 0.3:
            storm.submit()
        storm.step()
        if storm.asked:
            storm.disturb()
    return storm


def test_in_storms_steps_begin_by_themselves_and_are_taken_back() -> None:
    benches = [storm_of(seed).bench for seed in range(5)]
    assert all(bench.num_begun for bench in benches if bench.goes_on)
    commands = [command for bench in benches for command in bench.commands]
    assert any(isinstance(command, Revoke) for command in commands)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_goes_wrong_the_books_are_right_and_no_token_is(seed: int) -> None:
    storm = storm_of(seed)
    bench = storm.bench
    for _ in range(len(storm.asked) + 1):
        bench.run()
        bench.feed(Release(bench.loop.lease_ids()))
    assert set(bench.finished) == set(storm.asked), "each has one end"
    for name, expected in storm.asked.items():
        found = bench.output(name)
        assert found == list(expected[: len(found)])
    assert bench.loop.idle and bench.loop.num_used_blocks == 0
    opened = {item.sequence_id for plan in bench.plans for item in plan.items}
    closed = {sequence_id for plan in bench.plans for sequence_id in plan.closed}
    assert closed <= opened
