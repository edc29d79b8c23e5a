"""The thread: one request walks through all seven services, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.mesh.asking import Question, ask, assert_right, prompt_of

from banyan_core.hashing import block_hashes, cache_salt
from banyan_core.types import NS_PER_S, Outcome
from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import MESH_SECRET, Shared
from banyan_sim.mesh import SimMesh, Topology


@pytest.mark.parametrize(
    "question",
    [
        Question("greedy", prompt_of(100)),
        Question("seeded", prompt_of(100), temperature=0.8, seed=3),
        Question("three", prompt_of(100), temperature=0.8, n=3, max_tokens=10),
        Question("short", prompt_of(3)),
        Question("one-token", prompt_of(100), max_tokens=1),
        Question("two-tokens", prompt_of(100), max_tokens=2),
        Question("long", prompt_of(1000), max_tokens=100),
        Question("whole-blocks", prompt_of(96)),
    ],
    ids=lambda question: question.request_id,
)
def test_an_answer_is_right(question: Question) -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        assert_right(question, await ask(mesh, question))
        await mesh.wait_idle(5.0)
        await mesh.stop()

    run_virtual(main)


def test_the_request_leaves_its_trace_in_every_service() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        first = Question("first", prompt_of(200))
        assert_right(first, await ask(mesh, first))
        view = mesh.gateway.request_view("first")
        assert view is not None
        legs = {leg["verb"]: leg["worker_id"] for leg in view["workers"]}
        assert legs == {"prefill": "prefill-0", "decode": "decode-0"}
        assert view["placements"][0]["candidates"]
        assert view["placements"][0]["reason"]
        assert sum(view["ledger_ms"].values()) == pytest.approx(view["e2e_ms"])

        await asyncio.sleep(12.0)
        salt = cache_salt(MESH_SECRET, "tenant", "", mesh.topology.shared.card.digest)
        hashes = block_hashes(first.prompt, mesh.topology.shared.block_size, salt)
        holders = await mesh.hosts["router-0"].index.lookup(hashes)
        assert holders["prefill-0"] == len(hashes)
        assert holders["kvstore-0"] == len(hashes)
        (heard,) = mesh.metrics.recent()
        assert heard.ended.outcome is Outcome.FINISHED
        assert heard.ended.num_output_tokens == first.max_tokens
        assert {worker.worker_id for worker in mesh.metrics.workers()} == {"prefill-0", "decode-0"}

        again = Question("again", first.prompt)
        answer = await ask(mesh, again)
        assert_right(again, answer)
        assert answer.usage is not None
        assert answer.usage.num_cached_tokens == 192
        await mesh.stop()

    run_virtual(main)


def test_stop_string_ends_the_work_and_is_not_sent() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        prompt = tuple(b"one two three END four five six seven")
        answer = await ask(mesh, Question("stop", prompt, stop=("END",)))
        assert answer.texts[0] == "one two three "
        assert answer.finishes[0] == "stop"
        assert answer.usage is not None
        assert answer.usage.num_output_tokens == len("one two three END")
        await mesh.wait_idle(5.0)
        await mesh.stop()

    run_virtual(main)


def test_a_prompt_larger_than_any_pool_is_refused_at_once() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(shared=Shared(num_blocks=8)))
        await mesh.start()
        asked_ns = mesh.loop.clock.now_ns()
        answer = await ask(mesh, Question("large", prompt_of(1000)))
        assert mesh.loop.clock.now_ns() - asked_ns < NS_PER_S
        assert answer.failure is not None
        assert (answer.failure.http_status, answer.failure.code) == (400, "too_large")
        assert answer.failure.retry_after_s is None
        assert "1000 tokens fit into no worker's KV pool" in answer.failure.message
        small = Question("small", prompt_of(20), max_tokens=4)
        assert_right(small, await ask(mesh, small))
        await mesh.stop()

    run_virtual(main)
