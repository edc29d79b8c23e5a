"""Stopping: no new connections, running answers end, broken ones are told so."""

import asyncio
import socket

import httpx2
import openai
import pytest
from tests.gateway_api.conftest import app_of
from tests.gateway_api.echo_gateway import EchoGateway, Script
from tests.gateway_api.test_streaming import ask_without_reading

from banyan_gateway.auth import KeyRing
from banyan_gateway.http_server import HttpServer
from banyan_gateway.ports import RequestFailed
from banyan_text.tokenizer import ByteTokenizer


class Draining:
    """Stops as the real driving half does: waits for what runs, then lets it fail."""

    def __init__(self, gateway: EchoGateway, go_on: asyncio.Event) -> None:
        self._gateway = gateway
        self._go_on = go_on

    async def start(self) -> None:
        return

    async def stop(self, grace_s: float) -> None:
        self._go_on.set()
        await self._gateway.until_running(0)


@pytest.mark.parametrize("failure", [None, RequestFailed("stopping", "the gateway is stopping")])
async def test_running_stream_gets_its_end(failure: RequestFailed | None) -> None:
    gateway = EchoGateway(ByteTokenizer())
    go_on = asyncio.Event()
    gateway.script = Script(num_tokens=2, wait_for=go_on, failure=failure)
    server = HttpServer(app_of(gateway, KeyRing()), "127.0.0.1:0", Draining(gateway, go_on))
    await server.start()
    url = f"http://{server.address}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        stream = await client.completions.create(
            model="echo", prompt="abc", max_tokens=3, stream=True
        )
        chunks = aiter(stream)
        text = (await anext(chunks)).choices[0].text
        stopping = asyncio.create_task(server.stop(5.0))
        failed = False
        try:
            async for chunk in chunks:
                text += chunk.choices[0].text
        except openai.APIError as error:
            failed = error.code == "stopping"
        await stopping
    assert (text, failed) == (("abc", False) if failure is None else ("ab", True))
    async with httpx2.AsyncClient() as after:
        with pytest.raises(httpx2.ConnectError):
            await after.get(f"{url}/models")


async def test_client_that_does_not_read_holds_up_no_stop() -> None:
    gateway = EchoGateway(ByteTokenizer())
    driving = Draining(gateway, asyncio.Event())
    server = HttpServer(app_of(gateway, KeyRing()), "127.0.0.1:0", driving)
    await server.start()
    with socket.socket() as client:
        await ask_without_reading(client, server.address)
        await gateway.until_running(1)
        async with asyncio.timeout(60):
            await server.stop(0.0)


async def test_stop_before_start_frees_the_port() -> None:
    gateway = EchoGateway(ByteTokenizer())
    first = HttpServer(
        app_of(gateway, KeyRing()), "127.0.0.1:0", Draining(gateway, asyncio.Event())
    )
    with pytest.raises(OSError, match="cannot listen"):
        HttpServer(app_of(gateway, KeyRing()), first.address, Draining(gateway, asyncio.Event()))
    await first.stop(0.0)
