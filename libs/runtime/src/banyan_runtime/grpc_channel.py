"""Calls over gRPC for asyncio: bounded, quick to reconnect, ended with whoever reads them.

A channel's own defaults would wait up to two minutes before it connects again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from banyan_runtime.grpc_call_stream import SHORT_BYTES, CallStream, NotOffered
from banyan_runtime.grpc_end import CallEnd
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.grpc_terms import COMMON_OPTIONS, FROM_STATUS, encode
from banyan_runtime.rpc import (
    BidiStream,
    ClientStream,
    Code,
    Method,
    RefusedError,
    RpcError,
    ServerStream,
    Unary,
)
from banyan_runtime.rpc_bounds import CallSlots
from banyan_runtime.trace_context import TRACEPARENT, current_trace

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

_CHANNEL_OPTIONS = [
    *COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the time that one attempt may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a back-off is one channel's own
]
_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode}


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
        self._calls = CallStream(self._channel, partial(_told, address))

    @property
    def address(self) -> str:
        return self._address

    def _stub(self, make: Callable[..., Any], method: Method) -> Any:
        """One per method, made at its first call: that takes as long as sending a message."""
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = make(method.path, encode, method.response.FromString)
            self._stubs[method.path] = stub
        return stub

    async def unary(self, method: Unary[Req, Res], request: Req, timeout_s: float) -> Res:
        async with self._slots.one():
            if self._calls.is_offered:
                encoded = encode(request)
                if len(encoded) <= SHORT_BYTES:
                    try:
                        return await self._shared(method, encoded, timeout_s)
                    except NotOffered:
                        pass  # nothing has run yet
            return await self._alone(method, request, timeout_s)

    async def _shared(self, method: Unary[Req, Res], request: bytes, timeout_s: float) -> Res:
        trace = current_trace()
        traceparent = "" if trace is None else str(trace)
        answer = await self._calls.call(method.path, request, timeout_s, traceparent)
        if answer.status == grpc.StatusCode.UNIMPLEMENTED.value[0]:
            raise NotOffered  # health and reflection, say, are gRPC's own
        if answer.status:
            status = _BY_NUMBER.get(answer.status, grpc.StatusCode.UNKNOWN)
            raise _told(self._address, status, answer.message)
        try:
            return method.response.FromString(answer.response)
        except DecodeError as error:
            raise RpcError(Code.INTERNAL, f"{method.path}: {error}") from None

    async def _alone(self, method: Unary[Req, Res], request: Req, timeout_s: float) -> Res:
        stub = self._stub(self._channel.unary_unary, method)
        try:
            answer: Res = await stub(request, timeout=timeout_s, metadata=_trace_metadata())
        except grpc.aio.AioRpcError as error:
            raise _told(self._address, error.code(), error.details() or "") from None
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
        end = CallEnd(call)
        sender = asyncio.ensure_future(_send_all(call, requests))
        try:
            yield call
        except grpc.aio.AioRpcError as error:
            raise _told(self._address, *end.status(error)) from None
        except asyncio.CancelledError:
            if sender.done() and not sender.cancelled() and (failure := sender.exception()):
                raise failure from None  # it was our own request iterator that cancelled the call
            raise
        finally:
            call.cancel()
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def close(self) -> None:
        await self._calls.close()
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


def _told(address: str, status: grpc.StatusCode, details: str) -> RpcError:
    code, details = FROM_STATUS.get(status, Code.INTERNAL), details or status.name
    if code is not Code.UNAVAILABLE:
        return RpcError(code, details)
    # gRPC has no status for it; its words come from the operating system.
    if "Connection refused" in details:
        return RefusedError(f"{address}: connection refused")
    return RpcError(code, f"{address}: {details}")
