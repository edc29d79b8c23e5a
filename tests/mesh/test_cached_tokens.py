"""`cached_tokens` is what no engine step computed: held against what the runners really did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.mesh.asking import Answer, Question, ask, assert_right, prompt_of

from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.runner import StepPlan, StepResult
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology


class Watched:
    """Makes echo runners that note which prompt positions each request had computed."""

    def __init__(self) -> None:
        self.computed: dict[str, set[int]] = {}

    def __call__(self, num_blocks: int, block_size: int, latency: EchoLatency) -> EchoRunner:
        watched = self

        class Runner(EchoRunner):
            def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
                for item in plan.items:
                    request_id = item.sequence_id.rsplit("/", 2)[0]
                    positions = watched.computed.setdefault(request_id, set())
                    positions.update(range(item.start, item.start + len(item.token_ids)))
                return super().run(plan, on_layer)

        return Runner(num_blocks, block_size, latency)

    def num_cached(self, question: Question) -> int:
        prompt = range(len(question.prompt))
        return len(prompt) - len(self.computed[question.request_id].intersection(prompt))


async def check(watched: Watched, mesh: SimMesh, question: Question, **how: object) -> int:
    answer = await ask(mesh, question, **how)  # type: ignore[arg-type]  # ask's own options
    assert_right(question, answer)
    assert answer.usage is not None
    assert answer.usage.num_cached_tokens == watched.num_cached(question)
    return answer.usage.num_cached_tokens


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 200, 1000])
@pytest.mark.parametrize("topology", [Topology(), Topology(num_prefill=2, num_decode=2)])
def test_cold_then_warm(topology: Topology, num_tokens: int) -> None:
    async def main() -> None:
        watched = Watched()
        mesh = SimMesh(replace(topology, shared=Shared(runner=watched)))
        await mesh.start()
        cold = Question("cold", prompt_of(num_tokens))
        assert await check(watched, mesh, cold) == 0
        await asyncio.sleep(2.0)
        warm = await check(watched, mesh, replace(cold, request_id="warm"))
        assert warm == (num_tokens - 1) // 16 * 16
        longer = Question("longer", (*cold.prompt, *prompt_of(100, start=50)))
        assert await check(watched, mesh, longer) >= warm
        await mesh.stop()

    run_virtual(main)


def test_the_store_alone_can_know_a_prompt() -> None:
    async def main() -> None:
        watched = Watched()
        mesh = SimMesh(Topology(shared=Shared(runner=watched)))
        await mesh.start()
        first = Question("first", prompt_of(1000))
        await check(watched, mesh, first)
        await asyncio.sleep(2.0)
        for host_id in ("prefill-0", "decode-0"):
            await mesh.restart(host_id)
        await mesh.wait_ready()
        assert await check(watched, mesh, replace(first, request_id="again")) > 900
        await mesh.stop()

    run_virtual(main)


def test_a_lost_prefill_worker_makes_cached_tokens_computed_ones() -> None:
    async def main() -> None:
        watched = Watched()
        mesh = SimMesh(Topology(shared=Shared(runner=watched), num_kvstores=0))
        await mesh.start()
        await check(watched, mesh, Question("first", prompt_of(500), 1))

        def kill(answer: Answer) -> None:
            if answer.num_tokens == 1:
                mesh.crash("decode-0")

        again = Question("again", prompt_of(800))
        await check(watched, mesh, again, on_news=kill)
        await mesh.stop()

    run_virtual(main)
