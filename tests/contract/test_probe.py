"""The health checks of containers, as they run there: a process per look, beside a real server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.contract.test_grpc_server import HANDLERS, keys  # noqa: F401  # a fixture

from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity

NOWHERE = "127.0.0.1:1"


async def probe(service: str, address: str, **env: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "banyan_runtime.probe", service]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={f"BANYAN_{service.upper()}_ADDRESS": address, **env},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_a_service_is_ready_as_long_as_its_health_says_so() -> None:
    network = GrpcNetwork(ChannelSecurity.plain())
    server = await network.serve("0.0.0.0:0", HANDLERS)
    for serving, seen in ((False, (1, "router is not ready\n")), (True, (0, ""))):
        server.set_serving(serving)
        assert await probe("router", server.address) == seen
    await network.close()


async def test_nobody_answers() -> None:
    code, said = await probe("decode", NOWHERE)
    assert code == 1
    assert said == "decode does not answer: [Errno 111] Connection refused\n"


async def test_mutual_tls(keys: Path) -> None:  # noqa: F811
    files = [keys / name for name in ("peer.key", "peer.pem", "ca.pem")]
    network = GrpcNetwork(ChannelSecurity.mtls(*files))
    server = await network.serve("0.0.0.0:0", HANDLERS)
    channels = "mtls:" + ",".join(map(str, files))
    assert await probe("router", server.address, BANYAN_CHANNELS=channels) == (0, "")
    assert (await probe("router", server.address))[0] == 1
    await network.close()


@pytest.mark.parametrize(("status", "code"), [("200 OK", 0), ("503 Service Unavailable", 1)])
async def test_the_gateway_is_asked_over_http(status: str, code: int) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await probe("gateway", f"0.0.0.0:{port}"))[0] == code
    assert asked == [b"GET /ready HTTP/1.1\r\n"]
