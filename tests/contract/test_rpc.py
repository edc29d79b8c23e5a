"""One suite for gRPC and for its twin: what services rely on when they call each other."""

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

LARGE_BYTES = 64 * 1024


async def place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    return router_pb2.PlaceResponse(
        refusal=router_pb2.PlaceRefusal(reason=request.request_id, retry_after_ns=5)
    )


async def test_a_unary_call_carries_both_messages(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    channel = pair.client.channel(server.address)
    answer = await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="r1"), 5)
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
        await pair.client.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
    assert caught.value.code is code


async def test_a_bug_in_a_handler_is_internal_and_reported(pair: Pair) -> None:
    async def broken(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        raise KeyError("oops")

    reported: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, broken)])
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
    assert caught.value.code is Code.INTERNAL
    assert [type(error) for error in reported] == [KeyError]


async def test_nobody_at_the_address_is_refused_at_once(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    await server.stop(0)
    async with asyncio.timeout(2):
        with pytest.raises(RefusedError) as caught:
            channel = pair.client.channel(server.address)
            await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 30)
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_channel_reconnects_soon_after_a_restart(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    channel = pair.client.channel(server.address)
    await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
    await server.stop(0)
    with pytest.raises(RpcError):
        await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
    await pair.server.serve(server.address, [rpc.serve_unary(wire.PLACE, place)])
    async with asyncio.timeout(3):
        while True:
            try:
                await channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
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
        await pair.client.channel(server.address).unary(wire.PLACE, request, 5)
    assert caught.value.code is Code.EXHAUSTED


async def test_an_unserved_method_is_an_error(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, place)])
    with pytest.raises(RpcError) as caught:
        await pair.client.channel(server.address).unary(wire.VIEW, router_pb2.ViewRequest(), 5)
    assert caught.value.code is Code.INTERNAL


class Flood:
    """Serves WATCH without an end, and remembers how far it came and that it was closed."""

    def __init__(self, payload: str = "") -> None:
        self.num_sent = 0
        self.is_closed = False
        self._payload = payload

    async def watch(
        self, request: worker_pb2.WatchRequest
    ) -> AsyncIterator[worker_pb2.WorkerReport]:
        try:
            while True:
                self.num_sent += 1
                yield worker_pb2.WorkerReport(
                    num_blocks=self.num_sent, load=worker_pb2.WorkerLoad(admitted=[self._payload])
                )
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


async def test_a_stream_keeps_its_order_and_ends(pair: Pair) -> None:
    async def watch(request: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WorkerReport]:
        for i in range(100):
            yield worker_pb2.WorkerReport(num_blocks=i)

    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, watch)])
    channel = pair.client.channel(server.address)
    reports = [r async for r in channel.stream(wire.WATCH, worker_pb2.WatchRequest())]
    assert [report.num_blocks for report in reports] == list(range(100))


async def test_an_error_in_mid_stream_comes_after_what_was_sent(pair: Pair) -> None:
    async def watch(request: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WorkerReport]:
        yield worker_pb2.WorkerReport(num_blocks=1)
        raise RpcError(Code.NOT_FOUND, "no more")

    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, watch)])
    channel = pair.client.channel(server.address)
    seen = []
    with pytest.raises(RpcError, match="no more") as caught:
        async for report in channel.stream(wire.WATCH, worker_pb2.WatchRequest()):
            seen.append(report.num_blocks)
    assert (seen, caught.value.code) == ([1], Code.NOT_FOUND)


async def test_closing_a_stream_closes_its_handler(pair: Pair, eventually: Eventually) -> None:
    flood = Flood()
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    channel = pair.client.channel(server.address)
    async with aclosing(channel.stream(wire.WATCH, worker_pb2.WatchRequest())) as reports:
        async for _ in reports:
            break
    await eventually(lambda: flood.is_closed)


async def test_cancelling_a_consumer_closes_its_handler(pair: Pair, eventually: Eventually) -> None:
    flood = Flood()
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    channel = pair.client.channel(server.address)

    async def consume() -> None:
        async for _ in channel.stream(wire.WATCH, worker_pb2.WatchRequest()):
            pass

    consumer = asyncio.create_task(consume())
    await eventually(lambda: flood.num_sent > 0)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    await eventually(lambda: flood.is_closed)


async def test_a_consumer_that_does_not_read_stops_the_producer(pair: Pair) -> None:
    flood = Flood(payload="x" * LARGE_BYTES)
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    channel = pair.client.channel(server.address)
    reports = channel.stream(wire.WATCH, worker_pb2.WatchRequest())
    await anext(reports)
    stopped_at = -1
    async with asyncio.timeout(10):
        while stopped_at != flood.num_sent:
            stopped_at = flood.num_sent
            await asyncio.sleep(0.3)
    assert stopped_at * LARGE_BYTES < 16 * 1024 * 1024
    numbers = [(await anext(reports)).num_blocks for _ in range(stopped_at + 10)]
    assert numbers == list(range(2, stopped_at + 12))
    await reports.aclose()


async def test_a_stream_has_a_deadline(pair: Pair) -> None:
    async def watch(request: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WorkerReport]:
        yield worker_pb2.WorkerReport()
        await asyncio.sleep(60)

    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, watch)])
    channel = pair.client.channel(server.address)
    with pytest.raises(RpcError) as caught:
        async for _ in channel.stream(wire.WATCH, worker_pb2.WatchRequest(), timeout_s=0.3):
            pass
    assert caught.value.code is Code.DEADLINE


async def pages(count: int) -> AsyncIterator[kv_pb2.KvPages]:
    for layer in range(count):
        yield kv_pb2.KvPages(pages=[kv_pb2.KvPage(layer=layer, data=bytes(LARGE_BYTES))])


async def test_an_upload_is_read_to_its_end(pair: Pair) -> None:
    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        layers = [page.layer async for request in requests for page in request.pages]
        assert layers == list(range(50))
        return kv_pb2.PutResponse(num_stored_blocks=len(layers))

    server = await pair.server.serve(pair.address, [rpc.serve_upload(wire.STORE_PUT, put)])
    answer = await pair.client.channel(server.address).upload(wire.STORE_PUT, pages(50), 10)
    assert answer.num_stored_blocks == 50


async def test_an_upload_may_be_answered_early(pair: Pair) -> None:
    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        await anext(requests)
        raise RpcError(Code.EXHAUSTED, "full")

    server = await pair.server.serve(pair.address, [rpc.serve_upload(wire.STORE_PUT, put)])
    with pytest.raises(RpcError, match="full") as caught:
        await pair.client.channel(server.address).upload(wire.STORE_PUT, pages(1000), 10)
    assert caught.value.code is Code.EXHAUSTED


async def test_a_failing_request_source_fails_the_call(pair: Pair) -> None:
    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        return kv_pb2.PutResponse(num_stored_blocks=len([r async for r in requests]))

    async def failing() -> AsyncIterator[kv_pb2.KvPages]:
        yield kv_pb2.KvPages()
        raise LookupError("the block is gone")

    server = await pair.server.serve(pair.address, [rpc.serve_upload(wire.STORE_PUT, put)])
    with pytest.raises(LookupError, match="the block is gone"):
        await pair.client.channel(server.address).upload(wire.STORE_PUT, failing(), 10)


async def echo(
    requests: AsyncIterator[worker_pb2.TokensRequest],
) -> AsyncIterator[worker_pb2.TokensReport]:
    step = 0
    async for request in requests:
        step += 1
        sequences = [worker_pb2.SequenceReport(sequence_id=i) for i in request.cancel.sequence_ids]
        yield worker_pb2.TokensReport(step=step, sequences=sequences)


async def test_a_bidi_stream_is_a_conversation(pair: Pair) -> None:
    server = await pair.server.serve(pair.address, [rpc.serve_bidi(wire.TOKENS, echo)])
    outbox: asyncio.Queue[str | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[worker_pb2.TokensRequest]:
        while (text := await outbox.get()) is not None:
            yield worker_pb2.TokensRequest(cancel=worker_pb2.TokensCancel(sequence_ids=[text]))

    heard = []
    outbox.put_nowait("s0")
    async for report in pair.client.channel(server.address).bidi(wire.TOKENS, requests()):
        heard.append((report.step, report.sequences[0].sequence_id))
        outbox.put_nowait(f"s{len(heard)}" if len(heard) < 20 else None)
    assert heard == [(i + 1, f"s{i}") for i in range(20)]


async def test_leaving_a_bidi_stream_ends_both_directions(
    pair: Pair, eventually: Eventually
) -> None:
    ended: list[str] = []

    async def requests() -> AsyncIterator[worker_pb2.TokensRequest]:
        try:
            while True:
                yield worker_pb2.TokensRequest()
                await asyncio.sleep(0.01)
        finally:
            ended.append("requests")

    async def serve(
        incoming: AsyncIterator[worker_pb2.TokensRequest],
    ) -> AsyncIterator[worker_pb2.TokensReport]:
        try:
            async for report in echo(incoming):
                yield report
        finally:
            ended.append("handler")

    server = await pair.server.serve(pair.address, [rpc.serve_bidi(wire.TOKENS, serve)])
    reports = pair.client.channel(server.address).bidi(wire.TOKENS, requests())
    async for _ in reports:
        break
    await reports.aclose()
    await eventually(lambda: sorted(ended) == ["handler", "requests"])


async def test_stopping_a_server_breaks_its_streams(pair: Pair, eventually: Eventually) -> None:
    flood = Flood()
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    channel = pair.client.channel(server.address)
    reports = channel.stream(wire.WATCH, worker_pb2.WatchRequest())
    await anext(reports)
    await server.stop(0)
    with pytest.raises(RpcError) as caught:
        async for _ in reports:
            pass
    assert caught.value.code is Code.UNAVAILABLE
    await eventually(lambda: flood.is_closed)


async def test_a_stopping_server_lets_running_calls_finish(pair: Pair) -> None:
    started = asyncio.Event()

    async def slow(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        started.set()
        await asyncio.sleep(0.3)
        return await place(request)

    server = await pair.server.serve(pair.address, [rpc.serve_unary(wire.PLACE, slow)])
    channel = pair.client.channel(server.address)
    request = router_pb2.PlaceRequest(request_id="last")
    calling = asyncio.create_task(channel.unary(wire.PLACE, request, 5))
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
        await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="traced"), 5)
        assert [_ async for _ in channel.stream(wire.PULL, worker_pb2.PullRequest(), 5)]
        async with aclosing(channel.bidi(wire.TOKENS, no_requests())) as answers:
            await anext(answers)
    await channel.unary(wire.PLACE, router_pb2.PlaceRequest(request_id="untraced"), 5)
    assert heard == {"traced": TRACE, "pull": TRACE, "tokens": None, "untraced": None}


async def no_requests() -> AsyncIterator[worker_pb2.TokensRequest]:
    return
    yield
