"""What one connection may take, where uvicorn sets no bound.

A client gets `FIRST_BYTE_TIMEOUT_S` to begin, `HEAD_TIMEOUT_S` and `HEAD_BYTES_MAX` for a request's
head, `DISCARD_TIMEOUT_S` to finish sending a body that was refused, and `LINGER_S` to take what was
written before a close.
This hooks into the callbacks of uvicorn's own protocol; every bound has a test on a real port.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from banyan_core.types import NS_PER_S
from banyan_gateway.errors import ApiError
from banyan_gateway.request_starts import RequestStarts

HEAD_BYTES_MAX: Final = 64 * 1024
HEAD_TIMEOUT_S: Final = 10.0
FIRST_BYTE_TIMEOUT_S: Final = 60.0
"""As long as between two requests, and as cheap. Of 10,000 clients at once many connect long before
they write, and a silent close in between looks to them like a lost request."""
DISCARD_BYTES_MAX: Final = 64 * 1024 * 1024
DISCARD_TIMEOUT_S: Final = 30.0
LINGER_S: Final = 10.0
PIPELINED_MAX: Final = 16
CONNECTIONS_MAX: Final = 16_384
_UPGRADE: Final = re.compile(rb"(?<=\n)upgrade:", re.IGNORECASE)
_NO_UPGRADE: Final = b"ignored:"
assert len(_NO_UPGRADE) == len(b"upgrade:")
_OTHER_FILES = 256  # of the process: calls to the mesh, the bus, the model folder


class LingeringTransport:
    """A transport whose `close` waits for the client, only so long.

    Plain transports wait until all is written: forever, when nobody reads. And they do not wait
    for a body that still comes: the client, busy sending, would never see why it was refused.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        must_wait: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._must_wait = must_wait
        self._aborting: asyncio.TimerHandle | None = None
        self.write = transport.write
        self.abort = transport.abort
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info

    def close(self) -> None:
        """Now, or not at all when the protocol will call again after the body's end."""
        if self._must_wait():
            return
        self._transport.close()
        if self._aborting is None and self._transport.get_write_buffer_size():
            self._aborting = self._loop.call_later(LINGER_S, self._transport.abort)

    def lost(self) -> None:
        """The end. What it held of its protocol goes, so that both go without the collector."""
        if self._aborting is not None:
            self._aborting.cancel()
        self._must_wait = bool


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Its timer runs while bytes are due that must not be waited for forever."""

    transport: LingeringTransport  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        starts: RequestStarts,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._starts = starts
        self._timer: asyncio.TimerHandle | None = None
        self._reading_head = True
        self._num_head_bytes = 0
        self._held_back = b""
        self._num_discarded = 0
        self._body_has_ended = True
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        lingering = LingeringTransport(transport, self.loop, self._body_is_owed)
        super().connection_made(lingering)  # type: ignore[arg-type]
        self._allow(FIRST_BYTE_TIMEOUT_S, self.transport.close)
        if len(self.connections) > max_connections():
            self.app = _refuse_connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._allow_any_time()
        self.transport.lost()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the last one that was pipelined, only
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._reading_head and not self._num_head_bytes:
            self._allow(HEAD_TIMEOUT_S, self._refuse_slow_head)
        self._num_head_bytes += len(data)
        super().data_received(self._without_upgrade(data) if self._reading_head else data)
        if self._reading_head and self._num_head_bytes > HEAD_BYTES_MAX:
            self._refuse(ApiError(431, f"the request's head exceeds {HEAD_BYTES_MAX} bytes"))

    def _without_upgrade(self, data: bytes) -> bytes:
        """`data`, which begins within a head, without an offer to speak another protocol.

        Every client of the JDK's offers HTTP/2 with each request. That may be passed over, but the
        parser would take what follows for the other protocol, and the body would be lost. The
        beginning of a line that may become an offer, or the head's end, waits for its next bytes.
        """
        data = self._held_back + data
        self._held_back = b""
        end = data.find(b"\n\r\n")
        if end < 0:
            end, line_end = len(data), data.rfind(b"\n")
            line = data[line_end + 1 :].lower()
            if line_end >= 0 and (b"upgrade:".startswith(line) or line == b"\r"):
                data, self._held_back = data[:line_end], data[line_end:]
        offer = _UPGRADE.search(data, 0, end)
        return data[: offer.start()] + _NO_UPGRADE + data[offer.end() :] if offer else data

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "what was sent is not valid HTTP/1.1"))

    # ------------------------------------------------------------ the parser's callbacks

    def on_headers_complete(self) -> None:
        self._reading_head = False
        self._body_has_ended = False
        self._allow_any_time()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED_MAX:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._num_discarded += len(body)
            if self._num_discarded > DISCARD_BYTES_MAX:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading_head = True
        self._num_head_bytes = 0
        self._num_discarded = 0
        self._body_has_ended = True
        if self.cycle.response_complete:  # uvicorn's own timer was stopped by the body's bytes
            idle_s = self.timeout_keep_alive if self.cycle.keep_alive else 0
            self._allow(idle_s, self.transport.close)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._body_is_owed():
            self._allow(DISCARD_TIMEOUT_S, self.transport.abort)
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._starts.begin(partial(self._start, cycle, app, self.loop.time()))

    def _start(self, cycle: RequestResponseCycle, app: Any, arrived_s: float) -> None:
        waited_s = self.loop.time() - arrived_s
        cycle.scope["state"]["waited_ns"] = round(waited_s * NS_PER_S)
        super()._start_asgi_task(cycle, app)

    # ------------------------------------------------------------ time, and refusals

    def _body_is_owed(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and not self._body_has_ended

    def _allow(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._allow_any_time()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _allow_any_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_slow_head(self) -> None:
        self._refuse(ApiError(408, f"the request's head took longer than {HEAD_TIMEOUT_S} s"))

    def _refuse(self, error: ApiError) -> None:
        """An answer and the connection's end; just the end when another answer is under way."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self.pipeline or (cycle and cycle.response_started and not cycle.response_complete):
            self.transport.abort()
            return
        body = error.body()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def max_connections() -> int:
    """As many as there may be open files, with some left for the rest of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CONNECTIONS_MAX, soft - _OTHER_FILES) if soft > 0 else CONNECTIONS_MAX


def raise_file_limit() -> None:
    """To the hard limit: shells give 1,024 files, which is as many clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + _OTHER_FILES
    if 0 <= soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(hard, wanted), hard)
        )


async def _refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    error = ApiError(503, "too many connections are open", code="overloaded", retry_after_s=1.0)
    response = error.response()
    response.headers["connection"] = "close"
    await response(scope, receive, send)
