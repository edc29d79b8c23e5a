"""Three times what the mesh can do: it goes on at its best, and the rest is told so early.

Open-loop arrivals on virtual time, so goodput may be asserted. `load-tests/overload.py` does the
same to real processes.
"""

from __future__ import annotations

import asyncio
import functools
import random
from dataclasses import dataclass, field

import pytest
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of

from banyan_core.echo import EchoLatency
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_MS, NS_PER_S
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology
from banyan_worker.options import WorkerOptions

HIGH, LOW = -1, 0
HIGH_SHARE, DEADLINE_SHARE = 0.1, 0.3
DEADLINE_S = 2.5
TTFT_TARGET_S = 2.0
SHARED = Shared(
    latency=EchoLatency(base_ns=50 * NS_PER_MS),
    worker=WorkerOptions(limits=EngineLimits(max_running=8, max_waiting=2)),
)
TOPOLOGIES = {
    "unsplit": Topology(num_prefill=0, num_decode=2, shared=SHARED),
    "split": Topology(shared=SHARED),
    "two gateways": Topology(num_prefill=0, num_decode=2, num_gateways=2, shared=SHARED),
}
PEAK_RATE = 16.0  # a second, about what the two workers can do
WARM_S, OFFERED_S = 3.0, 12.0


@dataclass(frozen=True)
class Seen:
    """One request as its client saw it, in seconds."""

    question: Question
    answer: Answer
    arrived_s: float
    ended_s: float
    ttft_s: float | None

    @property
    def took_s(self) -> float:
        return self.ended_s - self.arrived_s

    @property
    def good(self) -> bool:
        """The whole answer, within the target of its first token."""
        in_time = self.ttft_s is not None and self.ttft_s <= TTFT_TARGET_S
        return self.answer.usage is not None and in_time


@dataclass
class Load:
    """Poisson arrivals by seed; who came is in `seen` when it has ended."""

    mesh: SimMesh
    rate: float
    rng: random.Random
    seen: list[Seen] = field(default_factory=list)

    async def run(self, for_s: float) -> None:
        loop = self.mesh.loop
        until, number = loop.time() + for_s, 0
        async with asyncio.TaskGroup() as clients:
            while loop.time() < until:
                clients.create_task(self._client(self._question(number), number))
                number += 1
                await asyncio.sleep(self.rng.expovariate(self.rate))

    def _question(self, number: int) -> Question:
        hurried = self.rng.random() < DEADLINE_SHARE
        return Question(
            f"{self.rate}-{number}",
            prompt_of(self.rng.randint(20, 60), start=number % 50),
            self.rng.randint(10, 30),
            deadline_ns=round(DEADLINE_S * NS_PER_S) if hurried else None,
            priority=HIGH if self.rng.random() < HIGH_SHARE else LOW,
        )

    async def _client(self, question: Question, number: int) -> None:
        arrived = self.mesh.loop.time()
        first: list[float] = []

        def note(_: Answer) -> None:
            if not first:
                first.append(self.mesh.loop.time() - arrived)

        gateway = f"gateway-{number % self.mesh.topology.num_gateways}"
        answer = await ask(self.mesh, question, on_news=note, gateway=gateway)
        ttft = first[0] if first else None
        self.seen.append(Seen(question, answer, arrived, self.mesh.loop.time(), ttft))


def goodput(seen: list[Seen], since_s: float, until_s: float) -> float:
    num_good = sum(one.good and since_s <= one.ended_s < until_s for one in seen)
    return num_good / (until_s - since_s)


async def offered(topology: Topology, rate: float) -> tuple[list[Seen], float, SimMesh]:
    """What became of those who came at this rate, and the goodput once it was under way."""
    mesh = SimMesh(topology)
    await mesh.start()
    started = mesh.loop.time()
    load = Load(mesh, rate, mesh.loop.rng(f"load {rate}"))
    await load.run(WARM_S + OFFERED_S)
    good = goodput(load.seen, started + WARM_S, started + WARM_S + OFFERED_S)
    return load.seen, good, mesh


@functools.cache
def peak(name: str) -> float:
    """Goodput at about what the mesh can do."""

    async def main() -> float:
        _, good, mesh = await offered(TOPOLOGIES[name], PEAK_RATE)
        await mesh.stop()
        return good

    return run_virtual(main)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_at_three_times_capacity_goodput_stays_and_the_rest_is_shed_early(name: str) -> None:
    best = peak(name)

    async def main() -> None:
        seen, good, mesh = await offered(TOPOLOGIES[name], 3 * best)
        assert good >= 0.9 * best
        for one in seen:
            judge(one)
        turned_away = [one for one in seen if one.answer.failure is not None]
        num_away, num_at_once = len(turned_away), sum(one.took_s < 0.01 for one in turned_away)
        assert num_away > len(seen) / 2
        assert num_at_once > 0.8 * num_away  # the others were pushed out, or came too late
        high = [one for one in seen if one.question.priority == HIGH]
        num_high, num_high_good = len(high), sum(one.good for one in high)
        assert num_high_good >= 0.95 * num_high
        await mesh.wait_idle(5.0)
        await mesh.stop()

    run_virtual(main)


def judge(one: Seen) -> None:
    """The right answer, or a word on time that says when to come back."""
    failure = one.answer.failure
    if failure is None:
        assert_right(one.question, one.answer)
        return
    assert failure.http_status in (429, 503)
    assert failure.retry_after_s is not None
    assert 1 <= failure.retry_after_s <= 60
    if one.ttft_s is not None:
        assert failure.code == "failed"  # its deadline fell into its answer
        assert one.question.deadline_ns is not None
    else:
        assert failure.code in (
            "queue_full",
            "pushed_out",
            "queue_timeout",
            "deadline",
            "no_capacity",
        )
    assert one.took_s <= DEADLINE_S + 0.01
