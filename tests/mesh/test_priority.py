"""`priority` from the request to the engine's batch: a smaller value overtakes who came before."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of

from banyan_core.scheduler import EngineLimits
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology
from banyan_worker.options import WorkerOptions

MAX_RUNNING = 2
NUM_EARLY = 6
FULL = Shared(worker=WorkerOptions(limits=EngineLimits(max_running=MAX_RUNNING)))


async def places(priority: int, topology: Topology) -> list[str]:
    """Who ends in which order, when `late` comes to workers that are full and have a queue."""
    mesh = SimMesh(topology)
    await mesh.start()
    ended: list[str] = []

    async def one(question: Question) -> None:
        assert_right(question, await ask(mesh, question))
        ended.append(question.request_id)

    early = Question("early", prompt_of(100), max_tokens=60, priority=5)
    asked = [
        asyncio.ensure_future(
            one(replace(early, request_id=f"early-{i}", prompt=prompt_of(100, i)))
        )
        for i in range(NUM_EARLY)
    ]
    await asyncio.sleep(0.02)
    late = replace(early, request_id="late", prompt=prompt_of(100, 50), priority=priority)
    await asyncio.gather(*asked, one(late))
    await mesh.wait_idle(5.0)
    await mesh.stop()
    return ended


@pytest.mark.parametrize(
    "topology",
    [Topology(num_prefill=0, shared=FULL), Topology(shared=FULL)],
    ids=["unsplit", "split"],
)
def test_a_late_request_of_smaller_priority_value_overtakes_the_queue(topology: Topology) -> None:
    equal = run_virtual(lambda: places(5, topology))
    assert equal[-1] == "late"
    urgent = run_virtual(lambda: places(-5, topology))
    assert urgent.index("late") <= MAX_RUNNING
    patient = run_virtual(lambda: places(9, topology))
    assert patient[-1] == "late"
