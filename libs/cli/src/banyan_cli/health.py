"""Whether a process of the mesh answers: gRPC health, HTTP, PING; and whether routers see it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

import httpx2
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]  # it ships no types

from banyan.v1 import router_pb2
from banyan_runtime.rpc import Network, RpcError, Unary
from banyan_runtime.wire import VIEW

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


async def router_sees(network: Network, address: str, worker_ids: Collection[str]) -> bool:
    """Whether this router would place on all of these workers."""
    try:
        view = await network.channel(address).unary(VIEW, router_pb2.ViewRequest(), TIMEOUT_S)
    except RpcError:
        return False
    live = {viewed.worker.worker_id for viewed in view.workers if viewed.live}
    return live.issuperset(worker_ids)


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
