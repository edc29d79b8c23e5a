"""Handlers behind a gRPC port: errors as statuses, traces of callers, health.

A server's own defaults drop bursts past 1,000 pending calls with a bare CANCELLED, and two servers
may share a port unnoticed. Handlers are generic: types come from the method constants of `wire`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]  # it ships no types

from banyan_runtime.grpc_call_desk import CallDesk
from banyan_runtime.grpc_terms import COMMON_OPTIONS, encode, status_of
from banyan_runtime.rpc import ClientStream, Handler, ServerStream, Unary
from banyan_runtime.trace_context import TRACEPARENT, enter_trace

SERVER_OPTIONS = [
    *COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class GrpcServer:
    """Made by `GrpcNetwork.serve`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        address: str,
        servicer: health.aio.HealthServicer,
        calls: CallDesk,
    ) -> None:
        self._calls = calls
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
        self._calls.stop()
        await self._server.stop(grace_s)


def generic_handlers(handlers: Sequence[Handler], traced: bool) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for handler in handlers:
        _, service, verb = handler.method.path.split("/")
        services.setdefault(service, {})[verb] = _method_handler(handler, traced)
    return [
        grpc.method_handlers_generic_handler(service, verbs) for service, verbs in services.items()
    ]


def _method_handler(handler: Handler, traced: bool) -> grpc.RpcMethodHandler[Any, Any]:
    method = handler.method
    types = {"request_deserializer": method.request.FromString, "response_serializer": encode}
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
                try:
                    await context.write(message)
                except grpc.aio.InternalError:
                    return  # its reader has gone: no failure of the handler's

    return answer


def _enter_trace(context: Any) -> None:
    """Each call is served in a task of its own, so this ends with it."""
    sent = context.invocation_metadata() or ()
    enter_trace(next((value for key, value in sent if key == TRACEPARENT), None))


@asynccontextmanager
async def _aborting(handler: Handler, context: Any) -> AsyncIterator[None]:
    try:
        yield
    except (grpc.aio.AbortError, grpc.aio.AioRpcError):
        raise
    except Exception as error:
        await context.abort(*status_of(handler.method.path, error))
