"""What one connection may take: heads, bodies and time, on a real port."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import Script

from banyan_gateway import http_protocol
from banyan_gateway.ports import RequestFailed

BODY = json.dumps({"model": "echo", "prompt": "abc", "max_tokens": 3}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
REQUEST = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(served: Served) -> AsyncIterator[Streams]:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    return int(head.split()[1]), await reader.readexactly(length)


async def refusal_of(reader: asyncio.StreamReader) -> int:
    """The status of a refusal in OpenAI's shape, after which the connection ends."""
    status, body = await answer_of(reader)
    assert json.loads(body)["error"]["message"]
    assert await reader.read() == b""
    return status


async def test_head_without_end(served: Served) -> None:
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"x-filler: " + b"x" * http_protocol.HEAD_BYTES_MAX)
        assert await refusal_of(reader) == 431


@pytest.mark.parametrize("start", [HEAD, b"GET /v1/mod"])
async def test_head_that_never_ends(
    served: Served, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with connected(served) as (reader, writer):
        writer.write(start)
        assert await refusal_of(reader) == 408


async def test_client_that_begins_late_is_answered_and_one_that_never_does_loses_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(http_protocol, "FIRST_BYTE_TIMEOUT_S", 0.6)
    async with connected(served) as (late, writer), connected(served) as (never, _):
        await asyncio.sleep(0.3)
        writer.write(REQUEST)
        assert (await answer_of(late))[0] == 200
        assert await never.read() == b""


async def test_head_that_drips_after_an_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    async with connected(served) as (reader, writer):
        writer.write(REQUEST)
        assert (await answer_of(reader))[0] == 200

        async def drip() -> None:
            while True:
                writer.write(b"G")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        status, _ = await answer_of(reader)
        dripping.cancel()
        assert status in (400, 408)  # the parser may lose patience first: no method is so long


async def test_what_is_not_http(served: Served) -> None:
    async with connected(served) as (reader, writer):
        writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert await refusal_of(reader) == 400
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\nnot a length\r\n")
        assert await refusal_of(reader) == 400


async def test_announced_body_that_is_too_large_is_refused_unread(served: Served) -> None:
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"content-length: 50000000\r\nexpect: 100-continue\r\n\r\n")
        status, _ = await answer_of(reader)
        assert status == 413


async def test_client_that_sends_all_before_it_reads_sees_why_it_was_refused(
    served: Served,
) -> None:
    """Although it wants the connection closed: that waits for the body's end."""
    size, piece = 20_000_000, 1_000_000
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // piece):
            writer.write(b" " * piece)
            await writer.drain()
        assert await refusal_of(reader) == 413


@pytest.mark.parametrize("announced", [True, False])
async def test_connection_outlives_a_refused_body_that_is_sent_to_its_end(
    served: Served, announced: bool
) -> None:
    size, piece = 20_000_000, 1_000_000
    length = b"content-length: %d\r\n\r\n" % size
    async with connected(served) as (reader, writer):
        writer.write(HEAD + (length if announced else b"transfer-encoding: chunked\r\n\r\n"))
        for _ in range(size // piece):
            data = b" " * piece
            writer.write(data if announced else b"%x\r\n%b\r\n" % (piece, data))
            await writer.drain()
        writer.write(b"" if announced else b"0\r\n\r\n")
        assert (await answer_of(reader))[0] == 413
        writer.write(REQUEST)
        assert (await answer_of(reader))[0] == 200


async def test_refused_body_that_never_ends_ends_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "DISCARD_TIMEOUT_S", 0.2)
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"content-length: 50000000\r\n\r\n ")
        assert (await answer_of(reader))[0] == 413
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.02)
                await writer.drain()


async def test_more_pipelined_requests_than_anybody_needs(served: Served) -> None:
    served.gateway.script = Script(num_tokens=1, wait_s=60)
    async with connected(served) as (reader, writer):
        writer.write(REQUEST + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    await served.gateway.until_running(0)


async def test_client_that_leaves_with_requests_queued_stops_the_running_one(
    served: Served,
) -> None:
    served.gateway.script = Script(num_tokens=1, wait_s=60)
    async with connected(served) as (_, writer):
        writer.write(REQUEST * 3)
        await served.gateway.until_running(1)
        writer.transport.abort()
        await served.gateway.until_running(0)


async def test_a_few_pipelined_requests_are_answered_in_order(served: Served) -> None:
    async with connected(served) as (reader, writer):
        writer.write(REQUEST * 3)
        for _ in range(3):
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["choices"][0]["text"]) == (200, "abc")


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUPGRADE: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
PLAIN_BODY = b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED_BODY = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize("rest", [PLAIN_BODY, CHUNKED_BODY])
async def test_client_that_offers_another_protocol_is_answered_in_this_one(
    served: Served, rest: bytes
) -> None:
    """As every client of the JDK's does, by itself and with a body behind."""
    async with connected(served) as (reader, writer):
        for _ in range(2):
            writer.write(HEAD + OFFER + rest)
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["choices"][0]["text"]) == (200, "abc")


async def test_offer_is_passed_over_wherever_its_bytes_are_parted(served: Served) -> None:
    request = HEAD + OFFER + PLAIN_BODY
    first, last = request.index(b"h2c") - 12, request.index(BODY) + 1
    async with connected(served) as (reader, writer):
        for at in range(first, last):
            for part in (request[:at], request[at : at + 1], request[at + 1 :]):
                writer.write(part)
                await asyncio.sleep(0.001)
            assert (await answer_of(reader))[0] == 200, request[:at]


async def test_what_looks_like_an_offer_in_a_body_stays(served: Served) -> None:
    text = "\r\nUpgrade: h2c\r\n\r\n"
    body = json.dumps({"model": "echo", "prompt": text, "max_tokens": len(text)}).encode()
    async with connected(served) as (reader, writer):
        for start in (HEAD, HEAD + OFFER):
            writer.write(start + b"content-length: %d\r\n\r\n" % len(body) + body)
            status, answer = await answer_of(reader)
            assert (status, json.loads(answer)["choices"][0]["text"]) == (200, text)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing tells of a closed connection
            await asyncio.sleep(0.01)


async def test_client_that_reads_nothing_loses_its_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing waits for what was written to be read; not for long."""
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.2)
    body = json.dumps(
        {"model": "echo", "prompt": "x" * 1000, "max_tokens": 30_000, "logprobs": 5, "stream": True}
    ).encode()
    async with connected(served) as (_, writer):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        await served.gateway.until_running(1)
        await served.gateway.until_running(0)
        await until(lambda: not served.server.num_connections)


async def test_large_bodies_together_are_bounded(served: Served) -> None:
    """Two that come slowly fill the room; the third is told to come back, and then has room."""
    head = HEAD + b"content-length: 200000\r\n\r\n"
    async with connected(served) as (one, first), connected(served) as (two, second):
        first.write(head + b" " * 190_000)
        second.write(head + b" " * 190_000)
        await first.drain()
        await second.drain()
        await asyncio.sleep(0.1)
        async with connected(served) as (reader, writer):
            writer.write(head + b" " * 200_000)
            status, body = await answer_of(reader)
        assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
        assert (await answer_of(one))[0] == (await answer_of(two))[0] == 408
        async with connected(served) as (reader, writer):
            writer.write(head + b" " * 200_000)
            assert (await answer_of(reader))[0] == 400  # read, and found to be no JSON


async def test_full_gateway_refuses_before_it_reads(served: Served) -> None:
    served.gateway.full = RequestFailed("overloaded", "too many", 2.0, 429)
    async with connected(served) as (reader, writer):
        writer.write(HEAD + b"content-length: 1000\r\n\r\n")
        status, body = await answer_of(reader)
        assert (status, json.loads(body)["error"]["code"]) == (429, "overloaded")


async def test_too_many_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "CONNECTIONS_MAX", 1)
    async with connected(served) as (reader, writer):
        writer.write(REQUEST)
        assert (await answer_of(reader))[0] == 200
        async with httpx2.AsyncClient() as client:
            response = await client.get(f"{served.url}/v1/models")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "overloaded"
        writer.write(REQUEST)
        assert (await answer_of(reader))[0] == 200
