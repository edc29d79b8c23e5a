"""Unary calls over gRPC and its twin: answers, codes, deadlines, restarts, the caller's trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from banyan.v1 import kv_pb2, router_pb2, worker_pb2
from banyan_runtime import rpc, wire
from banyan_runtime.rpc import Code, RefusedError, RpcError
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES
from banyan_runtime.trace_context import TraceContext, current_trace, in_trace

from .conftest import Eventually, Pair


async def place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    return router_pb2.PlaceResponse(
        refusal=router_pb2.PlaceRefusal(reason=request.request_id, retry_after_ns=5)
    )


async def test_a_unary_call_carries_both_messages(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    channel = pair.client.channel(server.address)
    answer = await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="r1"), 30)
    assert (answer.refusal.reason, answer.refusal.retry_after_ns) == ("r1", 5)
    assert channel.address == server.address
    assert int(server.address.rpartition(":")[2]) > 0
    assert pair.client.channel(server.address) is channel


async def test_a_burst_of_calls_is_answered_in_full(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    channel = pair.client.channel(server.address)
    requests = [router_pb2.PlaceRequest(request_id=str(i)) for i in range(1500)]
    answers = await asyncio.gather(*(channel.unary(wire.PLACE, r, 30) for r in requests))
    assert [answer.refusal.reason for answer in answers] == [str(i) for i in range(1500)]


@pytest.mark.parametrize("code", list(Code))
async def test_every_code_crosses_the_wire(pair: Pair, code: Code) -> None:
    async def refuse(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        raise RpcError(code, "because of the test")

    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, refuse)])
    with pytest.raises(RpcError, match="because of the test") as caught:
        await pair.client.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    assert caught.value.code is code


async def test_a_bug_in_a_handler_is_internal_and_reported(pair: Pair) -> None:
    async def broken(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        raise KeyError("oops")

    reported: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, broken)])
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    assert caught.value.code is Code.INTERNAL
    assert [type(error) for error in reported] == [KeyError]


async def test_nobody_at_the_address_is_refused_at_once(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    await server.stop(0)
    async with asyncio.timeout(25):
        with pytest.raises(RefusedError) as caught:
            channel = pair.client.channel(server.address)
            await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_channel_reconnects_soon_after_a_restart(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    channel = pair.client.channel(server.address)
    await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    await server.stop(0)
    with pytest.raises(RpcError):
        await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    await pair.server.serve(server.address, [rpc.serve_unary(wire.PLACE, place)])
    async with asyncio.timeout(15):
        while True:
            try:
                await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
                break
            except RpcError as error:
                assert error.code is Code.UNAVAILABLE
                await asyncio.sleep(0.05)


async def test_a_taken_address_is_refused(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    with pytest.raises(OSError):
        await pair.server.serve(server.address, [rpc.serve_unary(wire.PLACE, place)])


async def test_a_late_answer_is_a_deadline_and_cancels_the_handler(
    pair: Pair, eventually: Eventually
) -> None:
    cancelled: list[str] = []

    async def slow(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("unary")
            raise
        return router_pb2.PlaceResponse()

    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, slow)])
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 0.2)
    assert caught.value.code is Code.DEADLINE
    await eventually(lambda: cancelled == ["unary"])


async def test_a_message_past_the_limit_is_refused(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    request = router_pb2.PlaceRequest(block_hashes=bytes(MAX_MESSAGE_BYTES + 1))
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.PLACE, request, 30)
    assert caught.value.code is Code.EXHAUSTED


async def test_an_unserved_method_is_an_error(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.VIEW, router_pb2.ViewRequest(), 30)
    assert caught.value.code is Code.INTERNAL


async def test_a_stopping_server_lets_running_calls_finish(pair: Pair) -> None:
    started = asyncio.Event()

    async def slow(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        started.set()
        await asyncio.sleep(0.3)
        return await place(request)

    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, slow)])
    channel = pair.client.channel(server.address)
    request = router_pb2.PlaceRequest(request_id="last")
    calling = asyncio.create_task(channel.unary(wire.PLACE, request, 30))
    await started.wait()
    await server.stop(5)
    assert (await calling).refusal.reason == "last"


TRACE = TraceContext(trace_id=0xABC, span_id=0xDEF)


async def test_a_call_carries_the_callers_trace(pair: Pair) -> None:
    """What one request calls for is in its trace; what lives longer than it is in none."""
    heard: dict[str, TraceContext | None] = {}

    async def note_place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        heard[request.request_id] = current_trace()
        return router_pb2.PlaceResponse()

    async def note_pull(request: worker_pb2.PullRequest) -> AsyncIterator[kv_pb2.KvPages]:
        heard["pull"] = current_trace()
        yield kv_pb2.KvPages()

    async def note_tokens(
        requests: AsyncIterator[worker_pb2.TokensRequest],
    ) -> AsyncIterator[worker_pb2.TokensReport]:
        heard["tokens"] = current_trace()
        yield worker_pb2.TokensReport()

    handlers = [
        rpc.serve_unary(wire.PLACE, note_place),
        rpc.serve_stream(wire.PULL, note_pull),
        rpc.serve_bidi(wire.TOKENS, note_tokens),
    ]
    server = await pair.server.serve(pair.address, handlers)
    channel = pair.client.channel(server.address)
    with in_trace(TRACE):
        await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="traced"), 30)
        assert [_ async for _ in channel.stream(wire.PULL, worker_pb2.PullRequest(), 30)]
        async with aclosing(channel.bidi(wire.TOKENS, no_requests())) as answers:
            await anext(answers)
    await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="untraced"), 30)
    assert heard == {"traced": TRACE, "pull": TRACE, "tokens": None, "untraced": None}


async def no_requests() -> AsyncIterator[worker_pb2.TokensRequest]:
    return
    yield
