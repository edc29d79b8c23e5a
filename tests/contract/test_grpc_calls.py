"""Unary calls over one stream, where that shows: other servers, long requests, ends and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]  # it ships no types

from banyan.v1 import calls_pb2, kv_pb2, router_pb2
from banyan_runtime import rpc, wire
from banyan_runtime.grpc_call_desk import MAX_RUNNING
from banyan_runtime.grpc_call_stream import SHORT_BYTES
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.grpc_terms import encode
from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES

from .conftest import Eventually

HEALTH = rpc.Unary(
    "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)


@pytest.fixture
async def network() -> AsyncIterator[GrpcNetwork]:
    network = GrpcNetwork(ChannelSecurity.plain())
    yield network
    await network.close()


async def place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    refusal = router_pb2.PlaceRefusal(
        reason=request.request_id, retry_after_ns=len(request.block_hashes)
    )
    return router_pb2.PlaceResponse(refusal=refusal)


async def forever(_: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


def asked(name: str) -> router_pb2.PlaceRequest:
    return router_pb2.PlaceRequest(request_id=name)


async def test_a_server_without_calls_is_called_as_ever(network: GrpcNetwork) -> None:
    async def answer(request: router_pb2.PlaceRequest, _: object) -> router_pb2.PlaceResponse:
        return await place(request)

    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=router_pb2.PlaceRequest.FromString,
        response_serializer=encode,
    )
    generic = grpc.method_handlers_generic_handler("banyan.v1.Router", {"Place": method})
    server.add_generic_rpc_handlers([generic])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = network.channel(f"127.0.0.1:{port}")
    answers = await asyncio.gather(
        *(channel.unary(wire.PLACE, asked(str(i)), 10) for i in range(20))
    )
    assert [answer.refusal.reason for answer in answers] == [str(i) for i in range(20)]
    await server.stop(0)


async def test_why_an_upload_was_ended_early_is_never_lost(network: GrpcNetwork) -> None:
    """Often enough that some writes fail just behind the refusal."""

    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        await anext(requests)
        raise RpcError(Code.EXHAUSTED, "full")

    async def pages() -> AsyncIterator[kv_pb2.KvPages]:
        for _ in range(1000):
            yield kv_pb2.KvPages()

    server = await network.serve("127.0.0.1:0", [rpc.serve_upload(wire.STORE_PUT, put)])
    channel = network.channel(server.address)
    for _ in range(40):
        refused = await asyncio.gather(
            *(channel.upload(wire.STORE_PUT, pages(), 60) for _ in range(8)), return_exceptions=True
        )
        assert {str(error) for error in refused} == {str(RpcError(Code.EXHAUSTED, "full"))}


async def test_what_grpc_serves_itself_can_be_asked(network: GrpcNetwork) -> None:
    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, place)])
    channel = network.channel(server.address)
    answer = await channel.unary(HEALTH, health_pb2.HealthCheckRequest(), 10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("num_bytes", [0, SHORT_BYTES - 100, SHORT_BYTES, 4 * SHORT_BYTES])
async def test_requests_of_all_lengths_arrive(network: GrpcNetwork, num_bytes: int) -> None:
    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, place)])
    request = router_pb2.PlaceRequest(block_hashes=bytes(num_bytes))
    answer = await network.channel(server.address).unary(wire.PLACE, request, 10)
    assert answer.refusal.retry_after_ns == num_bytes


async def test_long_answers_arrive_and_too_long_ones_are_refused_alone(
    network: GrpcNetwork,
) -> None:
    async def grow(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        text = "x" * request.num_prompt_tokens
        return router_pb2.PlaceResponse(refusal=router_pb2.PlaceRefusal(reason=text))

    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, grow)])
    channel = network.channel(server.address)
    sizes = [10, 300_000, MAX_MESSAGE_BYTES, 300_000, 7_000_000, 10]
    requests = [router_pb2.PlaceRequest(num_prompt_tokens=size) for size in sizes]
    calls = (channel.unary(wire.PLACE, request, 30) for request in requests)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[2], RpcError)
    assert answers[2].code is Code.EXHAUSTED
    found = [a.refusal.reason for a in answers if not isinstance(a, BaseException)]
    assert [len(reason) for reason in found] == [size for size in sizes if size != sizes[2]]


async def test_a_slow_call_holds_up_no_other(network: GrpcNetwork) -> None:
    gate = asyncio.Event()

    async def wait(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        if request.request_id == "slow":
            await gate.wait()
        return await place(request)

    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, wait)])
    channel = network.channel(server.address)
    slow = asyncio.create_task(channel.unary(wire.PLACE, asked("slow"), 30))
    await asyncio.sleep(0)
    assert (await channel.unary(wire.PLACE, asked("quick"), 30)).refusal.reason == "quick"
    gate.set()
    assert (await slow).refusal.reason == "slow"


async def test_a_caller_that_leaves_cancels_its_handler_only(
    network: GrpcNetwork, eventually: Eventually
) -> None:
    running: set[str] = set()

    async def wait(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        running.add(request.request_id)
        try:
            return await forever(request)
        finally:
            running.remove(request.request_id)

    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, wait)])
    channel = network.channel(server.address)
    leaves, stays = (
        asyncio.create_task(channel.unary(wire.PLACE, asked(name), 30))
        for name in ("leaves", "stays")
    )
    await eventually(lambda: len(running) == 2)
    leaves.cancel()
    await eventually(lambda: running == {"stays"})
    assert not stays.done()
    stays.cancel()
    await asyncio.gather(leaves, stays, return_exceptions=True)


async def test_a_server_that_is_cut_ends_every_call(
    network: GrpcNetwork, eventually: Eventually
) -> None:
    arrived: list[str] = []

    async def hold(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        arrived.append(request.request_id)
        return await forever(request)

    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, hold)])
    channel = network.channel(server.address)
    calls = [asyncio.create_task(channel.unary(wire.PLACE, asked(""), 30)) for _ in range(5)]
    await eventually(lambda: len(arrived) == 5)
    await server.stop(0)
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [error.code for error in errors if isinstance(error, RpcError)] == [Code.UNAVAILABLE] * 5


async def test_an_idle_stream_does_not_hold_up_a_stop(network: GrpcNetwork) -> None:
    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, place)])
    await network.channel(server.address).unary(wire.PLACE, asked(""), 10)
    async with asyncio.timeout(30):
        await server.stop(3600)


async def test_one_stream_has_a_bound_of_calls(network: GrpcNetwork) -> None:
    """A caller of ours stops at half of it."""
    server = await network.serve("127.0.0.1:0", [rpc.serve_unary(wire.PLACE, forever)])
    call = calls_pb2.Call(method=wire.PLACE.path)
    numbered = [calls_pb2.Call(number=number) for number in range(MAX_RUNNING + 1)]
    for each in numbered:
        each.MergeFrom(call)
    talking = asyncio.Event()

    async def batches() -> AsyncIterator[calls_pb2.CallBatch]:
        yield calls_pb2.CallBatch(calls=numbered)
        await talking.wait()

    async for batch in network.channel(server.address).bidi(wire.CONVERSE, batches()):
        (answer,) = batch.answers
        assert answer.number == MAX_RUNNING
        assert answer.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        talking.set()
        break
