"""The HTTP server inside this process: bound before it is announced, stopped in order.

Signals belong to the process's lifespan, the event loop too; of uvicorn only serving is used.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from banyan_gateway.http_protocol import BoundedProtocol
from banyan_gateway.request_starts import RequestStarts
from banyan_runtime.lifespan import Tasks
from banyan_runtime.listening import listen

_BACKLOG = 2048
_KEEP_ALIVE_S = 60
_LAST_WORDS_S = 2.0
_UNSENT_BYTES = 64 * 1024
"""Of a connection, in the system's buffers. Without the bound those take 4 MB for a client that
does not read: 12,000 tokens with logprobs are computed before this process hears of it."""


class Driving(Protocol):
    """The half of the gateway behind the HTTP server."""

    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


class HttpServer:
    """Serves `app` at `host:port` (port 0: any) in front of `driving`.

    Raises OSError when the address cannot be had.
    """

    def __init__(self, app: ASGIApp, address: str, driving: Driving) -> None:
        self._socket = listen(address, _BACKLOG)
        # Accepted connections have it from this one.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self._driving = driving
        config = uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(BoundedProtocol, starts=RequestStarts())),
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        self._server = _Server(config)
        self._tasks = Tasks()
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    async def start(self) -> None:
        await self._driving.start()
        serving = self._server.serve(sockets=[self._socket])
        self._serving = self._tasks.spawn_brief("http server", serving)
        await self._server.is_up.wait()

    async def stop(self, grace_s: float) -> None:
        """Stop accepting; running answers end, or are failed at the end of the grace."""
        if self._serving is None:
            self._socket.close()
            return
        self._server.should_exit = True
        await self._driving.stop(grace_s)
        with suppress(TimeoutError):  # of a client that does not read its last words
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._serving
