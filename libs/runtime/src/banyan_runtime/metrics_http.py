"""`/metrics` in Prometheus' text format, on the service's own event loop.

Prometheus' own server needs a thread per process; one short answer does not.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from banyan_runtime.listening import listen

_MAX_REQUEST_BYTES = 16 * 1024
_TIMEOUT_S = 5.0


class MetricsServer:
    """Made by `serve_metrics_http`; `address` has the real port."""

    def __init__(self, server: asyncio.Server, address: str) -> None:
        self._server = server
        self.address = address

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


async def serve_metrics_http(registry: CollectorRegistry, address: str) -> MetricsServer:
    """Serve GET /metrics on `host:port`. Raises OSError when the address cannot be had."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_respond(registry, head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that went away or sent no HTTP; it sees a closed connection
        finally:
            writer.close()

    taken = listen(address)
    server = await asyncio.start_server(answer, sock=taken, limit=_MAX_REQUEST_BYTES)
    return MetricsServer(server, f"{address.rpartition(':')[0]}:{taken.getsockname()[1]}")


def _respond(registry: CollectorRegistry, head: bytes) -> bytes:
    if head.startswith(b"GET /metrics"):
        status, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest(registry)
    else:
        status, kind, body = "404 Not Found", "text/plain", b"only GET /metrics is here\n"
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    ).encode() + body
