"""Seeded mixes of arrivals, leaving and slow clients, crashes, restarts, outages, partitions.

Every mix must end with each request right and ended once, and with nothing held anywhere.
`BANYAN_TEST_MIXES=1000` runs the full thousand.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import aclosing
from dataclasses import dataclass, replace

import pytest
from tests.mesh.asking import (
    Answer,
    Question,
    assert_right,
    one_by_one,
    prompt_of,
    request_of,
)

from banyan_core.journey_limits import JourneyLimits
from banyan_core.queue import QueueLimits
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, Outcome
from banyan_gateway.ports import RequestFailed, Usage
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh
from banyan_sim.mixes import draw_faults, draw_topology, unleash
from banyan_worker.options import WorkerOptions

NUM_MIXES = int(os.environ.get("BANYAN_TEST_MIXES", "100"))
MIXES_PER_TEST = 10
ARRIVALS_WITHIN_S = 2.0
IDLE_WITHIN_S = 60.0
GRACE_S = 6.0
"""Past the time for which workers keep what a gateway has not acknowledged."""
LIMITS = EngineLimits(max_running=1, max_waiting=1, max_draft_tokens=3)
"""Small enough that busy mixes reach them: workers refuse, requests wait at the gateway. Drafts, so
that a step brings some tokens at once."""
PATIENT = JourneyLimits(queue=QueueLimits(max_wait_ns=60 * NS_PER_S))
"""Nobody is shed, since every answer is judged; what sheds is tested in `test_overload`."""


@dataclass(frozen=True)
class Client:
    question: Question
    arrives_s: float
    leaves_at: int | None  # tokens
    pause_s: float  # before each read


def draw_client(rng: random.Random, number: int) -> Client:
    prompt = prompt_of(rng.choice((5, 40, 100, 400)), start=rng.randrange(4))
    question = Question(
        f"q{number}",
        prompt,
        max_tokens=rng.choice((1, 2, 20, 60)),
        temperature=rng.choice((0.0, 1.0)),
        seed=rng.randrange(1000),
        n=rng.choice((1, 1, 1, 2)),
    )
    leaves_at = rng.randint(1, 20) if rng.random() < 0.2 else None
    pause_s = 0.05 if rng.random() < 0.1 else 0.0
    return Client(question, rng.uniform(0, ARRIVALS_WITHIN_S), leaves_at, pause_s)


async def be_client(mesh: SimMesh, client: Client) -> Answer:
    await asyncio.sleep(client.arrives_s)
    answer = Answer()
    stream = one_by_one(mesh.gateway.generate(request_of(mesh, client.question)))
    try:
        async with aclosing(stream):
            async for item in stream:
                if isinstance(item, Usage):
                    answer.usage = item
                    continue
                answer.take(item)
                if client.leaves_at is not None and answer.num_tokens >= client.leaves_at:
                    break
                await asyncio.sleep(client.pause_s)
    except RequestFailed as failure:
        answer.failure = failure
    return answer


def judge(client: Client, answer: Answer) -> None:
    if answer.usage is not None:
        assert_right(client.question, answer)
        return
    assert client.leaves_at is not None, f"{client.question.request_id}: {answer.failure}"
    for choice, tokens in answer.tokens.items():
        assert tokens == client.question.right_answer(choice)[: len(tokens)]


async def watch_bounds(mesh: SimMesh) -> None:
    """Queues stay within their bounds at all times, not only in the end."""
    while True:
        for worker in mesh.workers().values():
            load = worker.work.load()
            assert load.num_running <= LIMITS.max_running
            assert load.num_running + load.num_waiting <= LIMITS.max_running + LIMITS.max_waiting
        await asyncio.sleep(0.001)


async def run_mix() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    shared = Shared(num_blocks=128, worker=WorkerOptions(limits=LIMITS), journey=PATIENT)
    topology = replace(draw_topology(loop.rng("topology")), shared=shared)
    mesh = SimMesh(topology)
    await mesh.start()
    watching = asyncio.create_task(watch_bounds(mesh))
    unleash(mesh, draw_faults(loop.rng("faults"), topology, ARRIVALS_WITHIN_S))
    rng = loop.rng("clients")
    clients = [draw_client(rng, number) for number in range(rng.randint(1, 12))]
    answers = await asyncio.gather(*(be_client(mesh, client) for client in clients))
    for client, answer in zip(clients, answers, strict=True):
        judge(client, answer)
    await mesh.wait_idle(IDLE_WITHIN_S)
    await asyncio.sleep(GRACE_S)
    assert not watching.done(), watching.exception()
    watching.cancel()
    for worker in mesh.workers().values():
        assert worker.figures()["banyan_worker_retained_sequences"] == 0
        worker.engine.check_invariants()
        assert not worker.engine.lease_ids()
    assert mesh.gateway.num_open == 0
    for client in clients:
        view = mesh.gateway.request_view(client.question.request_id)
        assert view is not None
        assert view["state"] in (Outcome.FINISHED, Outcome.CANCELLED)
    await mesh.stop()


@pytest.fixture(autouse=True)
def no_real_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError(f"something really slept {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)


@pytest.mark.parametrize("first", range(0, NUM_MIXES, MIXES_PER_TEST))
def test_mixes_end_right(first: int) -> None:
    for seed in range(first, min(first + MIXES_PER_TEST, NUM_MIXES)):
        try:
            run_virtual(run_mix, seed=seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
