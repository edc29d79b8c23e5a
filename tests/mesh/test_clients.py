"""Clients that leave, read slowly or not at all; workers and gateways that are told to stop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from tests.mesh.asking import Question, ask, assert_right, prompt_of, request_of

from banyan_runtime.virtual_loop import run_virtual
from banyan_sim.builders import Shared
from banyan_sim.mesh import SimMesh, Topology

LONG = Question("long", prompt_of(100), 2000)


def test_a_client_that_leaves_stops_its_work_within_a_step() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        stream = mesh.gateway.generate(request_of(mesh, LONG))
        async with aclosing(stream):
            async for _ in stream:
                break
        left_s = mesh.loop.time()
        await mesh.wait_idle(0.2)
        assert mesh.loop.time() - left_s < 0.1
        assert all(worker.engine.num_used_blocks == 0 for worker in mesh.workers().values())
        view = mesh.gateway.request_view("long")
        assert view is not None
        assert view["state"] == "cancelled"
        await mesh.stop()

    run_virtual(main)


def test_leaving_in_mid_prompt_stops_the_prompt() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        asking = asyncio.create_task(ask(mesh, Question("prompt", prompt_of(3000), 10)))
        await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await mesh.wait_idle(0.5)
        assert all(worker.engine.num_used_blocks == 0 for worker in mesh.workers().values())
        await mesh.stop()

    run_virtual(main)


def test_a_client_that_never_reads_is_cut_off_and_others_are_not_held_up() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(shared=Shared(num_blocks=1024)))
        await mesh.start()
        deaf = mesh.gateway.generate(request_of(mesh, Question("deaf", prompt_of(50), 10_000)))
        await anext(deaf)
        question = Question("other", prompt_of(60), 100)
        alone_s = mesh.loop.time()
        assert_right(question, await ask(mesh, question))
        assert mesh.loop.time() - alone_s < 1.0
        await mesh.wait_idle(60.0)
        view = mesh.gateway.request_view("deaf")
        assert view is not None
        assert view["state"] == "cancelled"
        assert "does not read" in view["reason"]
        await deaf.aclose()
        await mesh.stop()

    run_virtual(main)


def test_a_deadline_ends_the_work() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        hurried = Question("hurried", prompt_of(100), 2000, deadline_ns=200_000_000)
        answer = await ask(mesh, hurried)
        assert answer.failure is not None
        assert 0 < len(answer.tokens[0]) < 2000
        assert answer.tokens[0] == hurried.right_answer()[: len(answer.tokens[0])]
        await mesh.wait_idle(1.0)
        await mesh.stop()

    run_virtual(main)


def test_a_draining_worker_lets_short_answers_end_and_long_ones_go_on_elsewhere() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(num_decode=2))
        await mesh.start()
        questions = [Question("short", prompt_of(40), 20), Question("long", prompt_of(40), 3000)]
        asking = [asyncio.create_task(ask(mesh, question)) for question in questions]
        await asyncio.sleep(0.02)
        await asyncio.gather(mesh.stop_host("decode-0", 0.5), mesh.stop_host("decode-1", 0.5))
        for question, task in zip(questions, asking, strict=True):
            assert_right(question, await task)
        view = mesh.gateway.request_view("long")
        assert view is not None
        assert [leg["worker_id"] for leg in view["workers"]][-1] == "prefill-0"
        await mesh.stop()

    run_virtual(main)


def test_with_no_worker_left_a_drain_ends_in_a_retryable_error() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        asking = asyncio.create_task(ask(mesh, Question("long", prompt_of(40), 5000)))
        await asyncio.sleep(0.05)
        await asyncio.gather(mesh.stop_host("prefill-0", 0.5), mesh.stop_host("decode-0", 0.5))
        answer = await asking
        assert answer.failure is not None
        assert answer.failure.retry_after_s is not None
        assert answer.failure.http_status == 503
        await mesh.stop()

    run_virtual(main)


def test_a_stopping_gateway_lets_answers_end_then_fails_the_rest() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology())
        await mesh.start()
        short, long = Question("short", prompt_of(40), 20), Question("long", prompt_of(40), 5000)
        asking = [asyncio.create_task(ask(mesh, question)) for question in (short, long)]
        await asyncio.sleep(0.02)
        await mesh.stop_host("gateway-0", 0.5)
        assert_right(short, await asking[0])
        ended = await asking[1]
        assert ended.failure is not None
        assert "stopping" in ended.failure.message
        await mesh.wait_idle(10.0)
        await mesh.stop()

    run_virtual(main)


def test_a_dead_gateways_work_ends_with_its_grace_and_folds_to_failed() -> None:
    async def main() -> None:
        mesh = SimMesh(Topology(num_gateways=2))
        await mesh.start()
        lost = asyncio.create_task(
            ask(mesh, Question("lost", prompt_of(40), 5000), gateway="gateway-1")
        )
        await asyncio.sleep(0.05)
        mesh.crash("gateway-1")
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        await mesh.wait_idle(10.0)
        await asyncio.sleep(10.0)
        (record,) = mesh.metrics.recent()
        assert record.ended.outcome.value == "failed"
        assert "gateway" in record.ended.reason
        await mesh.stop()

    run_virtual(main)
