"""Whether a process of the mesh answers: gRPC health, the gateway's and metrics' HTTP, PING."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx2
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]  # it ships no types

from banyan_runtime.rpc import Network, RpcError, Unary

HEALTH = Unary(
    "/grpc.health.v1.Health/Check",
    health_pb2.HealthCheckRequest,
    health_pb2.HealthCheckResponse,
)
TIMEOUT_S = 2.0


async def grpc_is_serving(network: Network, address: str) -> bool:
    try:
        request = health_pb2.HealthCheckRequest()
        answer = await network.channel(address).unary(HEALTH, request, TIMEOUT_S)
    except RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def http_is_ok(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url, timeout=TIMEOUT_S)).status_code == 200
    except httpx2.HTTPError:
        return False


async def valkey_answers(address: str) -> bool:
    host, port = urlsplit(f"//{address}").hostname, urlsplit(f"//{address}").port
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"+PONG")
