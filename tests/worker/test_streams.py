"""Token streams: breaks, resumes, grace, restarts of gateways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.core.engines import echoed, spec
from tests.worker.workers import Mesh, virtual

from banyan.v1 import worker_pb2
from banyan_core.echo import EchoLatency
from banyan_core.types import Finish, SamplingParams
from banyan_runtime import wire
from banyan_runtime.rpc import Code, RpcError

PROMPT = tuple(range(100, 121))
LONG = SamplingParams(temperature=0, max_tokens=60)
SLOW = EchoLatency(base_ns=200_000_000, token_ns=0, sequence_ns=0)
EXPECTED = echoed(spec("r", PROMPT, sampling=LONG))


@virtual
async def test_one_message_per_step_for_all_sequences() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    asked = [spec(name, PROMPT, sampling=LONG) for name in ("a", "b", "c")]
    await asyncio.gather(*(gateway.decode(worker, one) for one in asked))
    for one in asked:
        assert (await gateway.until(one.sequence_id)).output() == EXPECTED
    assert gateway.num_messages <= worker.work.totals.num_steps + 2
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_quiet_stream_has_a_heartbeat_every_second() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    await asyncio.sleep(5.5)
    assert gateway.num_messages == 6
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_stream_resumes_where_the_gateway_says() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, sampling=LONG))
    await gateway.until("a", num_tokens=10)
    await gateway.close()
    await asyncio.sleep(0.02)
    told = gateway.told["a"]
    known = len(told.tokens)
    gateway.listen(worker, {"a": known, "never heard of": 3})
    assert (await gateway.until("a")).output() == EXPECTED
    assert told.num_repeated == 0
    assert (await gateway.until("never heard of")).finish is Finish.UNKNOWN
    await gateway.close()
    await mesh.stop()


@virtual
async def test_an_end_is_kept_until_it_is_acknowledged() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    await gateway.decode(worker, spec("a", PROMPT, sampling=LONG))
    await asyncio.sleep(1)  # it ended before anybody listened
    for _ in range(2):
        gateway.told.clear()
        gateway.listen(worker, {"a": 0})
        told = await gateway.until("a")
        assert told.output() == EXPECTED and told.figures is not None
        await gateway.close()
    gateway.listen(worker)
    gateway.ack(worker, "a")
    await asyncio.sleep(0.01)
    gateway.told.clear()
    await gateway.close()
    gateway.listen(worker, {"a": 0})
    assert (await gateway.until("a")).finish is Finish.UNKNOWN
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_gateway_that_stays_away_loses_its_sequences() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1", latency=SLOW)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, max_tokens=150))
    await gateway.until("a", num_tokens=1)
    await gateway.close()
    await asyncio.sleep(4.9)
    assert not worker.engine.idle, "within the grace it goes on"
    await asyncio.sleep(0.6)
    assert worker.engine.idle and worker.engine.num_used_blocks == 0
    assert len(worker.work.parts.streams.outbox) == 0
    await mesh.stop()


@virtual
async def test_a_gateway_that_never_listens_loses_its_sequences() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1", latency=SLOW)
    await mesh.gateway().decode(worker, spec("a", PROMPT, max_tokens=150))
    await asyncio.sleep(5.5)
    assert worker.engine.idle and len(worker.work.parts.streams.outbox) == 0
    await mesh.stop()


@virtual
async def test_a_restarted_gateway_ends_its_older_life() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    old, new = mesh.gateway(epoch=1), mesh.gateway(epoch=2)
    old.listen(worker)
    await old.decode(worker, spec("a", PROMPT, max_tokens=150))
    await old.until("a", num_tokens=1)
    new.listen(worker)
    await asyncio.sleep(0.01)
    assert worker.engine.idle
    with pytest.raises(RpcError) as refused:
        await old.decode(worker, spec("b", PROMPT))
    assert refused.value.code is Code.INVALID
    await old.close()
    await new.close()
    await mesh.stop()


@virtual
async def test_a_stream_must_begin_with_hello() -> None:
    mesh = Mesh()
    await mesh.worker("d1")
    gateway = mesh.gateway()

    async def only_an_ack() -> AsyncGenerator[worker_pb2.TokensRequest, None]:
        yield worker_pb2.TokensRequest(ack=worker_pb2.TokensAck())

    stream = gateway.network.channel("d1:1").bidi(wire.TOKENS, only_an_ack())
    with pytest.raises(RpcError, match="expected hello first"):
        await anext(stream)
    await mesh.stop()


@virtual
async def test_the_same_admission_twice_runs_once() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(worker)
    for _ in range(2):
        assert (await gateway.decode(worker, spec("a", PROMPT, sampling=LONG))).accepted
    assert (await gateway.until("a")).output() == EXPECTED
    assert worker.work.totals.num_output_tokens == len(EXPECTED)
    await gateway.close()
    await mesh.stop()
