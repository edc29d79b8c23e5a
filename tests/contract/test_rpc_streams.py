"""Streams of every direction, over gRPC and its twin: order, ends, errors, back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from banyan.v1 import kv_pb2, worker_pb2
from banyan_runtime import rpc, wire
from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.rpc_bounds import MAX_UNREAD_BYTES

from .conftest import Eventually, Pair

LARGE_BYTES = 64 * 1024


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


async def test_leaving_a_stream_that_waits_for_its_reader_is_no_failure(
    pair: Pair, eventually: Eventually
) -> None:
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    flood = Flood(payload="x" * LARGE_BYTES)
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    reports = pair.client.channel(server.address).stream(wire.WATCH, worker_pb2.WatchRequest())
    await anext(reports)
    await stopped(flood)
    await reports.aclose()
    await eventually(lambda: flood.is_closed)
    await server.stop(0)
    assert told == []


async def stopped(flood: Flood) -> int:
    """How many messages it had sent when nobody read them."""
    stopped_at = -1
    async with asyncio.timeout(60):
        while stopped_at != flood.num_sent:
            stopped_at = flood.num_sent
            await asyncio.sleep(0.3)
    return stopped_at


async def test_a_consumer_that_does_not_read_stops_the_producer(pair: Pair) -> None:
    flood = Flood(payload="x" * LARGE_BYTES)
    server = await pair.server.serve(pair.address, [rpc.serve_stream(wire.WATCH, flood.watch)])
    channel = pair.client.channel(server.address)
    reports = channel.stream(wire.WATCH, worker_pb2.WatchRequest())
    await anext(reports)
    stopped_at = await stopped(flood)
    # One more is read, one waits to be written.
    assert (stopped_at - 2) * LARGE_BYTES <= MAX_UNREAD_BYTES
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
    answer = await pair.client.channel(server.address).upload(wire.STORE_PUT, pages(50), 60)
    assert answer.num_stored_blocks == 50


async def test_an_upload_may_be_answered_early(pair: Pair) -> None:
    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        await anext(requests)
        raise RpcError(Code.EXHAUSTED, "full")

    server = await pair.server.serve(pair.address, [rpc.serve_upload(wire.STORE_PUT, put)])
    with pytest.raises(RpcError, match="full") as caught:
        await pair.client.channel(server.address).upload(wire.STORE_PUT, pages(1000), 60)
    assert caught.value.code is Code.EXHAUSTED


async def test_a_failing_request_source_fails_the_call(pair: Pair) -> None:
    async def put(requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        return kv_pb2.PutResponse(num_stored_blocks=len([r async for r in requests]))

    async def failing() -> AsyncIterator[kv_pb2.KvPages]:
        yield kv_pb2.KvPages()
        raise LookupError("the block is gone")

    server = await pair.server.serve(pair.address, [rpc.serve_upload(wire.STORE_PUT, put)])
    with pytest.raises(LookupError, match="the block is gone"):
        await pair.client.channel(server.address).upload(wire.STORE_PUT, failing(), 60)


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
