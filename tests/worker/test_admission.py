"""What a worker refuses, with which reason and when to ask again; and what it says of its load."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from tests.core.engines import CONTEXT, card, spec
from tests.worker.workers import Mesh, virtual

from banyan.v1 import worker_pb2
from banyan_core.echo import EchoLatency
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_MS
from banyan_runtime import codec, wire
from banyan_runtime.virtual_loop import run_virtual
from banyan_worker.options import WorkerOptions

PROMPT = tuple(range(100, 121))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (replace(spec("a", PROMPT), card_digest=b"other"), "model card 6f74686572, this worker"),
        (spec("a", ()), "prompt_token_ids: expected at least one token"),
        (spec("a", tuple(range(CONTEXT + 1))), "201 tokens, the context has 200"),
        (spec("a", tuple(range(150))), "150 tokens, this worker's KV has room for 80"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_reason(asked: object, reason: str) -> None:
    async def main() -> None:
        mesh = Mesh()
        worker = await mesh.worker("d1", num_blocks=20)
        gateway = mesh.gateway()
        for verb in (gateway.prefill, gateway.decode):
            answer = await verb(worker, asked)  # type: ignore[arg-type]  # of the table above
            assert not answer.accepted and answer.reason.startswith(reason)
            assert answer.epoch == worker.ref.epoch
        assert worker.figures()["banyan_worker_refused"] == 2
        await mesh.stop()

    run_virtual(main)


@virtual
async def test_past_its_bound_a_worker_refuses_and_says_when_to_ask_again() -> None:
    mesh = Mesh()
    options = WorkerOptions(limits=EngineLimits(max_running=1, max_waiting=2))
    worker = await mesh.worker("d1", options=options)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("first", PROMPT, max_tokens=30))
    await gateway.until("first", num_tokens=1)
    answers = [await gateway.decode(worker, spec(f"{i}", PROMPT)) for i in range(3)]
    assert [answer.accepted for answer in answers] == [True, True, False]
    assert answers[2].reason == "2 sequences wait"
    assert answers[2].retry_after_ns >= 20 * NS_PER_MS
    await gateway.until("1")
    assert (await gateway.decode(worker, spec("later", PROMPT))).accepted
    await gateway.until("later")
    await gateway.close()
    await mesh.stop()


@virtual
async def test_waiting_tokens_are_bounded_too() -> None:
    mesh = Mesh()
    limits = EngineLimits(max_running=1, max_waiting_tokens=50)
    slow = EchoLatency(base_ns=100_000_000, token_ns=0, sequence_ns=0)
    worker = await mesh.worker("d1", options=WorkerOptions(limits=limits), latency=slow)
    gateway = mesh.gateway()
    answers = [await gateway.decode(worker, spec(f"{i}", PROMPT)) for i in range(4)]
    assert [answer.accepted for answer in answers] == [True, True, False, False]
    assert answers[3].reason == "42 tokens wait"
    gateway.listen(worker)
    gateway.cancel(worker, "0", "1")
    await gateway.until("1")
    await gateway.close()
    await mesh.stop()


async def watched(mesh: Mesh, reports: list[worker_pb2.WorkerReport], times: list[float]) -> None:
    channel = mesh.gateway("router").network.channel("d1:1")
    async for report in channel.stream(wire.WATCH, worker_pb2.WatchRequest()):
        reports.append(report)
        times.append(asyncio.get_running_loop().time())


@virtual
async def test_a_watch_says_the_card_first_and_then_each_change_within_bounds() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("early", PROMPT, max_tokens=100))
    reports: list[worker_pb2.WorkerReport] = []
    times: list[float] = []
    watch = asyncio.create_task(watched(mesh, reports, times))
    await gateway.until("early", num_tokens=50)
    await gateway.decode(worker, spec("late", PROMPT, max_tokens=100))
    await gateway.until("late")
    await asyncio.sleep(3)
    first = reports[0]
    assert codec.model_card_from_pb(first.card) == card() and first.num_blocks == 64
    assert all(not report.HasField("card") for report in reports[1:])
    assert list(first.load.admitted) == ["early"]
    assert [name for report in reports[1:] for name in report.load.admitted] == ["late"]
    assert max(report.load.num_running for report in reports) == 2
    assert reports[-1].load.num_running == 0
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) > 0.049 and max(gaps) < 1.1
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await gateway.close()
    await mesh.stop()
