"""The RPC seam: methods, channels and servers as the services see them.

The real side is gRPC (`grpc_network`), the twin carries the same encoded bytes through bounded
queues in memory (`memory_network`). One contract suite runs against both. A handler is a plain
coroutine function (unary) or async generator (streams) over protobuf messages; it refuses by
raising `RpcError`. Cancelling the consumer of a stream, or breaking out of it and closing it,
cancels the handler.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


class Code(StrEnum):
    """The statuses that the mesh tells apart."""

    UNAVAILABLE = "unavailable"  # not reached, or gone: another peer may serve
    DEADLINE = "deadline"
    EXHAUSTED = "exhausted"  # a bound was hit
    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class RpcError(Exception):
    """A call that failed, on either side of the wire."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class RefusedError(RpcError):
    """Nobody listens at the address. Certain, where UNAVAILABLE may be a passing break."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNAVAILABLE, message)


@dataclass(frozen=True, slots=True)
class Unary(Generic[Req, Res]):
    path: str
    request: type[Req]
    response: type[Res]


@dataclass(frozen=True, slots=True)
class ServerStream(Generic[Req, Res]):
    path: str
    request: type[Req]
    response: type[Res]


@dataclass(frozen=True, slots=True)
class ClientStream(Generic[Req, Res]):
    path: str
    request: type[Req]
    response: type[Res]


@dataclass(frozen=True, slots=True)
class BidiStream(Generic[Req, Res]):
    path: str
    request: type[Req]
    response: type[Res]


Method = Unary[Any, Any] | ServerStream[Any, Any] | ClientStream[Any, Any] | BidiStream[Any, Any]


@dataclass(frozen=True, slots=True)
class Handler:
    """A method and the function that serves it; made by the four functions below."""

    method: Method
    function: Callable[[Any], Any]


def serve_unary(method: Unary[Req, Res], function: Callable[[Req], Awaitable[Res]]) -> Handler:
    return Handler(method, function)


def serve_stream(
    method: ServerStream[Req, Res], function: Callable[[Req], AsyncIterator[Res]]
) -> Handler:
    return Handler(method, function)


def serve_upload(
    method: ClientStream[Req, Res], function: Callable[[AsyncIterator[Req]], Awaitable[Res]]
) -> Handler:
    return Handler(method, function)


def serve_bidi(
    method: BidiStream[Req, Res], function: Callable[[AsyncIterator[Req]], AsyncIterator[Res]]
) -> Handler:
    return Handler(method, function)


class Channel(Protocol):
    """A connection to one address, made lazily, re-made after a break."""

    @property
    def address(self) -> str: ...

    async def unary(self, method: Unary[Req, Res], request: Req, timeout_s: float) -> Res: ...

    def stream(
        self, method: ServerStream[Req, Res], request: Req, timeout_s: float | None = None
    ) -> AsyncGenerator[Res, None]:
        """Answers as they come. Closing it early cancels the handler."""
        ...

    async def upload(
        self, method: ClientStream[Req, Res], requests: AsyncIterator[Req], timeout_s: float
    ) -> Res: ...

    def bidi(
        self, method: BidiStream[Req, Res], requests: AsyncIterator[Req]
    ) -> AsyncGenerator[Res, None]:
        """Answers as they come, while `requests` are sent. Closing it early cancels the handler."""
        ...


class Server(Protocol):
    @property
    def address(self) -> str:
        """The bound address, with the real port when port 0 was asked for."""
        ...

    def set_serving(self, serving: bool) -> None:
        """What gRPC health answers."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s`, then cut them."""
        ...


class Network(Protocol):
    """One process's access to the mesh. Channels are cached by address."""

    def channel(self, address: str) -> Channel: ...

    async def serve(self, address: str, handlers: Sequence[Handler]) -> Server:
        """Raises OSError when the address is taken."""
        ...

    async def close(self) -> None: ...
