"""Seeded mixes of arrivals, splits, cancels, broken streams and small pools: nothing is left."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.core.engines import echoed, spec
from tests.worker.workers import Gateway, Mesh, Pair, clock

from banyan.v1 import worker_pb2
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, Finish, LeasedKv, SamplingParams, SequenceSpec
from banyan_runtime.virtual_loop import run_virtual
from banyan_worker.options import WorkerOptions

NUM_REQUESTS = 25


def drawn(rng: random.Random, name: str) -> SequenceSpec:
    shared = tuple(range(500, 500 + rng.choice((0, 8, 21))))
    own = tuple(rng.randrange(900) for _ in range(rng.randint(1, 25)))
    temperature = rng.choice((0.0, 1.0))
    sampling = SamplingParams(
        temperature=temperature, seed=rng.randrange(99), max_tokens=rng.randint(1, 30)
    )
    return spec(name, shared + own, sampling=sampling, priority=rng.randint(0, 1))


async def until_taken(ask: Callable[[], Awaitable[worker_pb2.Admission]]) -> None:
    """As a gateway does: a full worker is asked again, when it said."""
    while not (answer := await ask()).accepted:
        assert answer.retry_after_ns > 0, answer.reason
        await asyncio.sleep(answer.retry_after_ns / NS_PER_S)


async def one_request(rng: random.Random, pair: Pair, name: str) -> tuple[SequenceSpec, bool]:
    """Unsplit or split, perhaps cancelled; what was asked, and whether it should be whole."""
    await asyncio.sleep(rng.random() * 0.2)
    asked = drawn(rng, name)
    gateway = pair.gateway
    source = None
    if rng.random() < 0.7:
        lease_id = f"{name}-prefill"
        held = replace(asked, sequence_id=lease_id)
        source = LeasedKv(pair.prefill.ref, lease_id)
        lease_ns = rng.choice((NS_PER_S // 100, 5 * NS_PER_S))
        await until_taken(functools.partial(gateway.prefill, pair.prefill, held, lease_ns))
    await until_taken(functools.partial(gateway.decode, pair.decode, asked, source))
    if rng.random() < 0.2:
        await asyncio.sleep(rng.random() * 0.05)
        gateway.cancel(pair.decode, name)
        gateway.cancel(pair.prefill, f"{name}-prefill")
        return asked, False
    return asked, True


async def break_streams(rng: random.Random, gateway: Gateway, pair: Pair) -> None:
    """The stream to decode breaks now and then and resumes by index."""
    while True:
        await asyncio.sleep(rng.random() * 0.05)
        task = gateway.streams["d1"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(rng.random() * 0.02)
        resume = {
            name: len(told.tokens) for name, told in gateway.told.items() if told.finish is None
        }
        gateway.listen(pair.decode, resume)


@pytest.mark.parametrize("seed", range(8))
def test_mix(seed: int) -> None:
    async def main() -> None:
        rng = clock().rng("mix")
        mesh = Mesh()
        mesh.wires.set_delay(rng.randint(0, 3_000_000))
        limits = EngineLimits(
            max_step_tokens=rng.randint(8, 64),
            max_running=rng.randint(1, 8),
            max_draft_tokens=rng.choice((0, 3)),
        )
        pair = Pair(
            await mesh.worker("p1", num_blocks=24, options=WorkerOptions(limits=limits)),
            await mesh.worker("d1", num_blocks=24, options=WorkerOptions(limits=limits)),
            mesh.gateway(),
        )
        pair.gateway.listen(pair.prefill)
        pair.gateway.listen(pair.decode)
        chaos = asyncio.create_task(break_streams(rng, pair.gateway, pair))
        asked = await asyncio.gather(
            *(one_request(rng, pair, f"r{number}") for number in range(NUM_REQUESTS))
        )
        for one, whole in asked:
            if whole:
                told = await pair.gateway.until(one.sequence_id)
                assert told.finish is Finish.LENGTH, told.error
                assert told.output() == echoed(one), one.sequence_id
        chaos.cancel()
        await asyncio.gather(chaos, return_exceptions=True)
        await asyncio.sleep(12)  # leases and unacknowledged ends are over
        for worker in (pair.prefill, pair.decode):
            assert worker.work.idle and worker.engine.num_used_blocks == 0
            assert len(worker.work.parts.streams.outbox) == 0
            worker.engine.check_invariants()
        await pair.gateway.close()
        await mesh.stop()

    run_virtual(main, seed=seed)
