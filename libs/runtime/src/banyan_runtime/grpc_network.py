"""The real RPC seam: gRPC for asyncio, with health, reflection, bounds and quick reconnects.

Defaults that would hurt are changed here, once: a server drops bursts past 1,000 pending calls
with a bare CANCELLED; a channel waits up to two minutes to reconnect; two servers may share a
port unnoticed. Handlers are generic: types come from the method constants of `wire`.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import (  # type: ignore[import-untyped]  # it ships no types
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]  # nor does this

from banyan_runtime.listening import cannot_listen, listen
from banyan_runtime.rpc import (
    BidiStream,
    ClientStream,
    Code,
    Handler,
    Method,
    RefusedError,
    RpcError,
    ServerStream,
    Unary,
)
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES, CallSlots, report_handler_failure
from banyan_runtime.settings import SettingsError
from banyan_runtime.trace_context import TRACEPARENT, current_trace, enter_trace

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

_MESSAGE_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
_CHANNEL_OPTIONS = [
    *_MESSAGE_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the time that one attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a back-off is one channel's own
]
_SERVER_OPTIONS = [
    *_MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

_TO_STATUS = {
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.CANCELLED: grpc.StatusCode.ABORTED,  # CANCELLED itself means that the transport did it
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}
_FROM_STATUS = {status: code for code, status in _TO_STATUS.items()} | {
    # Not by this client's will, or its task would be cancelled: the server is going away.
    grpc.StatusCode.CANCELLED: Code.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class ChannelSecurity:
    """How channels are protected: plain, or mutual TLS with one key pair and one CA per mesh."""

    key: bytes = b""
    certificate: bytes = b""
    authority: bytes = b""

    @classmethod
    def plain(cls) -> ChannelSecurity:
        return cls()

    @classmethod
    def mtls(cls, key: Path, certificate: Path, authority: Path) -> ChannelSecurity:
        """From three PEM files. Raises OSError when one cannot be read or used."""
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # gRPC itself would blame the address
        trial.load_cert_chain(certificate, key)
        trial.load_verify_locations(authority)
        return cls(key.read_bytes(), certificate.read_bytes(), authority.read_bytes())

    @classmethod
    def parse(cls, spec: str) -> ChannelSecurity:
        """From the setting `BANYAN_CHANNELS`: `plain`, or `mtls:KEY,CERTIFICATE,AUTHORITY`.

        Raises SettingsError, also when a file cannot be read.
        """
        if spec == "plain":
            return cls.plain()
        kind, _, files = spec.partition(":")
        paths = [Path(file) for file in files.split(",")]
        if kind != "mtls" or len(paths) != 3:
            raise SettingsError(
                f"BANYAN_CHANNELS={spec}: expected plain, or mtls:KEY,CERTIFICATE,AUTHORITY with "
                "three PEM files."
            )
        try:
            return cls.mtls(*paths)
        except OSError as error:
            expected = f"expected three PEM files that belong together ({error.strerror})"
            raise SettingsError(f"BANYAN_CHANNELS={spec}: {expected}.") from None

    @property
    def is_plain(self) -> bool:
        return not self.key

    def server_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.authority, require_client_auth=True
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


class GrpcChannel:
    """Made by `GrpcNetwork.channel`."""

    def __init__(self, address: str, security: ChannelSecurity) -> None:
        self._address = address
        self._slots = CallSlots()
        self._stubs: dict[str, Any] = {}
        if security.is_plain:
            self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        else:
            credentials = security.channel_credentials()
            self._channel = grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)

    @property
    def address(self) -> str:
        return self._address

    def _stub(self, make: Callable[..., Any], method: Method) -> Any:
        """One per method, made at its first call: that takes as long as sending a message."""
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = make(method.path, _encode, method.response.FromString)
            self._stubs[method.path] = stub
        return stub

    async def unary(self, method: Unary[Req, Res], request: Req, timeout_s: float) -> Res:
        stub = self._stub(self._channel.unary_unary, method)
        async with self._slots.one():
            try:
                answer: Res = await stub(request, timeout=timeout_s, metadata=_trace_metadata())
            except grpc.aio.AioRpcError as error:
                raise _from_grpc(error, self._address) from None
        return answer

    async def stream(
        self, method: ServerStream[Req, Res], request: Req, timeout_s: float | None = None
    ) -> AsyncGenerator[Res, None]:
        stub = self._stub(self._channel.unary_stream, method)
        metadata = _trace_metadata()
        async with (
            self._slots.one(),
            self._running(stub(request, timeout=timeout_s, metadata=metadata)) as call,
        ):
            async for answer in call:
                yield answer

    async def upload(
        self, method: ClientStream[Req, Res], requests: AsyncIterator[Req], timeout_s: float
    ) -> Res:
        stub = self._stub(self._channel.stream_unary, method)
        async with self._slots.one(), self._running(stub(timeout=timeout_s), requests) as call:
            return await call  # type: ignore[no-any-return]  # of this method

    async def bidi(
        self, method: BidiStream[Req, Res], requests: AsyncIterator[Req]
    ) -> AsyncGenerator[Res, None]:
        stub = self._stub(self._channel.stream_stream, method)
        async with self._slots.one(), self._running(stub(), requests) as call:
            async for answer in call:
                yield answer

    @asynccontextmanager
    async def _running(
        self, call: Any, requests: AsyncIterator[Any] | None = None
    ) -> AsyncIterator[Any]:
        """Send `requests` meanwhile; whatever ends the block ends the call and the sending."""
        sender = asyncio.ensure_future(_send_all(call, requests))
        try:
            yield call
        except grpc.aio.AioRpcError as error:
            raise _from_grpc(error, self._address) from None
        except asyncio.CancelledError:
            if sender.done() and not sender.cancelled() and (failure := sender.exception()):
                raise failure from None  # it was our own request iterator that cancelled the call
            raise
        finally:
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def close(self) -> None:
        await self._channel.close()


async def _send_all(call: Any, requests: AsyncIterator[Any] | None) -> None:
    """Send requests as they come. If they fail, so does the call."""
    if requests is None:
        return
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the call has ended; its reader learns why
    except Exception:
        call.cancel()
        raise


def _trace_metadata() -> tuple[tuple[str, str], ...] | None:
    trace = current_trace()
    return None if trace is None else ((TRACEPARENT, str(trace)),)


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _from_grpc(error: grpc.aio.AioRpcError, address: str) -> RpcError:
    code = _FROM_STATUS.get(error.code(), Code.INTERNAL)
    details = error.details() or error.code().name
    if code is not Code.UNAVAILABLE:
        return RpcError(code, details)
    # gRPC has no status for it; its words come from the operating system.
    if "Connection refused" in details:
        return RefusedError(f"{address}: connection refused")
    return RpcError(code, f"{address}: {details}")


# ---------------------------------------------------------------- servers


class GrpcServer:
    """Made by `GrpcNetwork.serve`."""

    def __init__(
        self, server: grpc.aio.Server, address: str, servicer: health.aio.HealthServicer
    ) -> None:
        self._server = server
        self._address = address
        self._health = servicer
        self._changing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return self._address

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        value = status.SERVING if serving else status.NOT_SERVING
        self._changing = asyncio.ensure_future(self._health.set("", value))

    async def stop(self, grace_s: float) -> None:
        self.set_serving(False)
        if self._changing is not None:
            await self._changing
        await self._server.stop(grace_s)


def _generic_handlers(handlers: Sequence[Handler], traced: bool) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for handler in handlers:
        _, service, verb = handler.method.path.split("/")
        services.setdefault(service, {})[verb] = _method_handler(handler, traced)
    return [
        grpc.method_handlers_generic_handler(service, verbs) for service, verbs in services.items()
    ]


def _method_handler(handler: Handler, traced: bool) -> grpc.RpcMethodHandler[Any, Any]:
    method = handler.method
    types = {"request_deserializer": method.request.FromString, "response_serializer": _encode}
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_answer_once(handler, traced), **types)
    if isinstance(method, ClientStream):
        return grpc.stream_unary_rpc_method_handler(_answer_once(handler, traced), **types)
    if isinstance(method, ServerStream):
        return grpc.unary_stream_rpc_method_handler(_answer_many(handler, traced), **types)
    return grpc.stream_stream_rpc_method_handler(_answer_many(handler, traced), **types)


def _answer_once(handler: Handler, traced: bool) -> Callable[[Any, Any], Any]:
    async def answer(request: Any, context: Any) -> Any:
        if traced:
            _enter_trace(context)
        async with _aborting(handler, context):
            return await handler.function(request)

    return answer


def _answer_many(handler: Handler, traced: bool) -> Callable[[Any, Any], Any]:
    # A coroutine that writes, not a generator: a cancel then closes the handler at once, while
    # gRPC would leave a suspended generator to the garbage collector.
    async def answer(request: Any, context: Any) -> None:
        if traced:
            _enter_trace(context)
        async with _aborting(handler, context), aclosing(handler.function(request)) as answers:
            async for message in answers:
                await context.write(message)

    return answer


def _enter_trace(context: Any) -> None:
    """Each call is served in a task of its own, so this ends with it."""
    sent = context.invocation_metadata() or ()
    enter_trace(next((value for key, value in sent if key == TRACEPARENT), None))


@asynccontextmanager
async def _aborting(handler: Handler, context: Any) -> AsyncIterator[None]:
    try:
        yield
    except RpcError as error:
        await context.abort(_TO_STATUS[error.code], error.message)
    except (grpc.aio.AbortError, grpc.aio.AioRpcError):
        raise
    except Exception as error:
        report_handler_failure(handler.method.path, error)
        message = f"{handler.method.path}: {type(error).__name__}: {error}"
        await context.abort(grpc.StatusCode.INTERNAL, message)


class GrpcNetwork:
    """One process's access to the mesh over gRPC. `traced`: callers' traces reach the handlers."""

    def __init__(self, security: ChannelSecurity, *, traced: bool = False) -> None:
        self._security = security
        self._traced = traced
        self._channels: dict[str, GrpcChannel] = {}
        self._servers: list[GrpcServer] = []

    def channel(self, address: str) -> GrpcChannel:
        if address not in self._channels:
            self._channels[address] = GrpcChannel(address, self._security)
        return self._channels[address]

    async def serve(self, address: str, handlers: Sequence[Handler]) -> GrpcServer:
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        generic = _generic_handlers(handlers, self._traced)
        server.add_generic_rpc_handlers(generic)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        names = [handler.method.path.split("/")[1] for handler in handlers]
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(sorted(set(names)), server)
        port = self._bind(server, address)
        await server.start()
        bound = GrpcServer(server, f"{address.rpartition(':')[0]}:{port}", servicer)
        bound.set_serving(True)
        self._servers.append(bound)
        return bound

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        listen(address).close()  # before gRPC tries, which would log its own lines
        try:
            if self._security.is_plain:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, self._security.server_credentials())
        except RuntimeError as error:
            raise cannot_listen(address, error) from None
        if port == 0:
            raise cannot_listen(address, OSError(errno.EADDRINUSE, "gRPC got no port"))
        return port

    async def close(self) -> None:
        for server in self._servers:
            await server.stop(0)
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
