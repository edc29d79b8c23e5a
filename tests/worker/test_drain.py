"""A drain refuses what is new, lets what runs end or go on elsewhere, and then is over."""

from __future__ import annotations

import asyncio

from tests.core.engines import echoed, spec
from tests.worker.workers import Gateway, Mesh, clock, virtual

from banyan.v1 import worker_pb2
from banyan_core.echo import EchoLatency
from banyan_core.types import NS_PER_S, Finish, LeasedKv
from banyan_runtime import wire
from banyan_worker.service import WorkerService

PROMPT = tuple(range(100, 121))
SLOW = EchoLatency(base_ns=100_000_000, token_ns=0, sequence_ns=0)


async def drain(gateway: Gateway, worker: WorkerService, grace_ns: int) -> int:
    request = worker_pb2.DrainRequest(grace_ns=grace_ns)
    channel = gateway.network.channel(worker.ref.address)
    answer = await channel.unary(wire.DRAIN, request, 1.0)
    return answer.num_running


@virtual
async def test_what_runs_may_end_within_the_grace_and_nothing_new_is_taken() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT))
    assert await drain(gateway, worker, 5 * NS_PER_S) == 1
    refused = await gateway.decode(worker, spec("b", PROMPT))
    assert not refused.accepted and refused.reason == "draining"
    assert worker.work.load().draining
    told = await gateway.until("a")
    assert told.finish is Finish.LENGTH and told.output() == echoed(spec("a", PROMPT))
    gateway.ack(worker, "a")
    await mesh.stop()
    assert clock().clock.now_ns() < NS_PER_S, "it did not sit out the grace"
    await gateway.close()


@virtual
async def test_past_the_grace_what_runs_ends_as_drained_with_its_tokens() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1", latency=SLOW)
    gateway = mesh.gateway()
    gateway.listen(worker)
    running = spec("a", PROMPT, max_tokens=100)
    await gateway.decode(worker, running)
    fetching = spec("b", PROMPT, max_tokens=100)
    source = LeasedKv(worker.ref, "x")
    await gateway.decode(worker, fetching, source)
    stopping = asyncio.create_task(worker.stop(1.0))
    told = await gateway.until("a")
    assert told.finish is Finish.DRAINED
    assert told.output() == echoed(running)[: len(told.tokens)] and len(told.tokens) >= 9
    assert (await gateway.until("b")).finish is Finish.DRAINED
    gateway.ack(worker, "a", "b")
    await stopping
    assert clock().clock.now_ns() < 2 * NS_PER_S
    assert worker.engine.num_used_blocks == 0
    await gateway.close()


@virtual
async def test_a_sequence_that_still_fetches_is_drained_too() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    source = await mesh.worker("p1", latency=SLOW)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT), LeasedKv(source.ref, "unknown"))
    stopping = asyncio.create_task(worker.stop(0.1))
    assert (await gateway.until("a")).finish is Finish.DRAINED
    gateway.ack(worker, "a")
    await stopping
    assert worker.engine.num_used_blocks == 0
    await gateway.close()
    mesh.workers.remove(worker)
    await mesh.stop()


@virtual
async def test_a_gateway_that_does_not_acknowledge_delays_the_end_by_a_bound() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT))
    await gateway.until("a")
    started_ns = clock().clock.now_ns()
    await worker.stop(1.0)
    assert 2.9 * NS_PER_S < clock().clock.now_ns() - started_ns < 3.2 * NS_PER_S
    await gateway.close()


@virtual
async def test_a_stop_shortens_a_drain_that_is_under_way() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1", latency=SLOW)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, max_tokens=150))
    await drain(gateway, worker, 100 * NS_PER_S)
    stopping = asyncio.create_task(worker.stop(0.5))
    assert (await gateway.until("a")).finish is Finish.DRAINED
    gateway.ack(worker, "a")
    await stopping
    assert clock().clock.now_ns() < NS_PER_S
    await gateway.close()


@virtual
async def test_a_held_prefill_is_waited_for_within_the_grace() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.gateway.prefill(pair.prefill, spec("r/0/1", PROMPT))
    await pair.gateway.until("r/0/1")
    pair.gateway.ack(pair.prefill, "r/0/1")
    stopping = asyncio.create_task(pair.prefill.stop(5.0))
    await asyncio.sleep(0.5)
    source = LeasedKv(pair.prefill.ref, "r/0/1")
    await pair.gateway.decode(pair.decode, spec("r/0/2", PROMPT), source)
    told = await pair.gateway.until("r/0/2")
    assert told.figures is not None and told.figures.num_fetched_blocks == 5
    await pair.gateway.release(pair.prefill, "r/0/1")
    await stopping
    assert clock().clock.now_ns() < NS_PER_S
    await pair.gateway.close()
    await mesh.stop()
