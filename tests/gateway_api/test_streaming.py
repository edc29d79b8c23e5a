"""Streams on the wire: frames, keep-alives, breaks, and clients that go away or do not read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import EchoGateway, Script

from banyan_gateway.ports import RequestFailed

PLAIN = {"model": "echo", "prompt": "abc", "max_tokens": 3, "stream": True}


async def frames_of(http: httpx2.AsyncClient, body: dict[str, Any]) -> list[str]:
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    return response.text.removesuffix("\n\n").split("\n\n")


async def test_frames(http: httpx2.AsyncClient) -> None:
    *frames, last = await frames_of(http, PLAIN)
    assert last == "data: [DONE]"
    objects = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert [each["choices"][0]["text"] for each in objects] == ["a", "b", "c", ""]
    assert {each["object"] for each in objects} == {"text_completion"}
    assert all(each["system_fingerprint"].startswith("fp_") for each in objects)


async def ask_without_reading(client: socket.socket, url: str) -> None:
    """Ask for more than any buffer on the way holds."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    body = json.dumps(PLAIN | {"prompt": "x" * 1000, "max_tokens": 30_000, "logprobs": 5}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, int(port)))
    await loop.sock_sendall(client, head.encode() + body)


async def test_keep_alive_comments(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    gateway.script = Script(num_tokens=1, wait_s=0.2)
    frames = await frames_of(http, PLAIN)
    comments = [frame for frame in frames if frame == ": keep-alive"]
    assert 2 <= len(comments) <= 4
    assert frames.index(": keep-alive") == 1
    assert frames[-1] == "data: [DONE]"


async def test_keep_alive_before_the_first_token_then_error(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    failure = RequestFailed("deadline", "too late", None, 503)
    gateway.script = Script(num_tokens=0, wait_s=0.12, failure=failure)
    *comments, error = await frames_of(http, PLAIN)
    assert comments
    assert set(comments) == {": keep-alive"}
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline"


async def test_error_event_comes_after_all_tokens_and_without_done(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    gateway.script = Script(num_tokens=2, wait_s=0.01, failure=RequestFailed("lost", "gone"))
    first, second, error = await frames_of(http, PLAIN)
    assert '"text":"a"' in first
    assert '"text":"b"' in second
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "gone"


async def test_one_failed_prompt_ends_all(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    gateway.script = Script(num_tokens=1, wait_s=0.01, failure=RequestFailed("lost", "gone"))
    frames = await frames_of(http, PLAIN | {"prompt": ["abc", "def"]})
    assert '"error"' in frames[-1]
    assert "data: [DONE]" not in frames
    assert gateway.num_running == 0


@asynccontextmanager
async def cutting_proxy(port: int, num_bytes: int) -> AsyncIterator[int]:
    """Forwards one connection's bytes and cuts it after `num_bytes` of the answer."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", port)
        upload = asyncio.create_task(_copy(reader, requests))
        num_left = num_bytes
        while num_left and (data := await answers.read(num_left)):
            writer.write(data)
            num_left -= len(data)
        await writer.drain()
        upload.cancel()
        requests.close()
        writer.close()

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


@pytest.mark.parametrize("num_bytes", [700, 800, 900])
async def test_cut_connection_is_no_complete_answer(served: Served, num_bytes: int) -> None:
    served.gateway.script = Script(num_tokens=50, wait_s=60)
    async with cutting_proxy(int(served.url.rpartition(":")[2]), num_bytes) as port:
        url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            reasons = []
            with pytest.raises((openai.APIError, httpx2.HTTPError)):
                async for chunk in await client.completions.create(
                    model="echo", prompt="abc", max_tokens=100, stream=True
                ):
                    reasons += [choice.finish_reason for choice in chunk.choices]
            assert reasons
            assert set(reasons) == {None}
    await served.gateway.until_running(0)


async def test_client_that_does_not_read_is_cut_off(served: Served) -> None:
    with socket.socket() as client:
        await ask_without_reading(client, served.url)
        await served.gateway.until_running(1)
        await served.gateway.until_running(0)
    assert served.gateway.num_given_up == 1
    assert 0 < served.gateway.num_deltas < 30_000


async def test_body_that_never_arrives(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{"
    )
    async with asyncio.timeout(60):
        assert b" 408 " in await reader.readline()
    writer.close()
