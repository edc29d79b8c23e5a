"""The calling side of the twin of gRPC: requests go up in a task, answers come until the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from banyan_runtime.memory_call import Call, encode
from banyan_runtime.memory_mesh import End
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
from banyan_runtime.trace_context import current_trace

if TYPE_CHECKING:
    from banyan_runtime.memory_network import MemoryNetwork

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


class MemoryChannel:
    """Made by `MemoryNetwork.channel`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._slots = CallSlots()

    @property
    def address(self) -> str:
        return self._address

    async def unary(self, method: Unary[Req, Res], request: Req, timeout_s: float) -> Res:
        answers = self._exchange(method, _one(request), timeout_s, _traceparent())
        return await _only(method, answers)  # type: ignore[no-any-return]  # of this method

    async def stream(
        self, method: ServerStream[Req, Res], request: Req, timeout_s: float | None = None
    ) -> AsyncGenerator[Res, None]:
        answers = self._exchange(method, _one(request), timeout_s, _traceparent())
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def upload(
        self, method: ClientStream[Req, Res], requests: AsyncIterator[Req], timeout_s: float
    ) -> Res:
        answers = self._exchange(method, requests, timeout_s)
        return await _only(method, answers)  # type: ignore[no-any-return]  # of this method

    async def bidi(
        self, method: BidiStream[Req, Res], requests: AsyncIterator[Req]
    ) -> AsyncGenerator[Res, None]:
        answers = self._exchange(method, requests, None)
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def _exchange(
        self,
        method: Method,
        requests: AsyncIterator[Any],
        timeout_s: float | None,
        traceparent: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The one way a call runs: send all requests in a task, yield answers until the end."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        async with self._slots.one(), self._open(method.path, traceparent) as call:
            sender = loop.create_task(_send_all(call, requests), name=f"send {method.path}")
            try:
                while isinstance(item := await _receive(call, deadline), bytes):
                    yield method.response.FromString(item)
            finally:
                failure = await _end_sender(sender)
            if failure is not None:
                raise failure
            call.is_complete = True
            if item.error is not None:
                raise _told(item.error)

    @asynccontextmanager
    async def _open(self, path: str, traceparent: str | None) -> AsyncIterator[Call]:
        await asyncio.sleep(0)
        network = self._network
        server = network.mesh.servers.get(self._address)
        if network.is_cut or server is None:
            raise RefusedError(f"{self._address}: connection refused")
        call = Call(network.mesh, network, server, path, traceparent)
        call.start()
        try:
            yield call
        finally:
            call.close()


def _traceparent() -> str | None:
    trace = current_trace()
    return None if trace is None else str(trace)


def _told(error: RpcError) -> RpcError:
    """What crosses the wire of an error: nothing of the other process's stack."""
    if isinstance(error, RefusedError):
        return RefusedError(error.message)
    return RpcError(error.code, error.message)


async def _send_all(call: Call, requests: AsyncIterator[Any]) -> None:
    """Send requests as they come. If they fail, so does the call."""
    try:
        async for request in requests:
            await call.up.send(encode(request))
    except Exception:
        call.down.break_now(End())
        raise
    call.up.finish()


async def _receive(call: Call, deadline: float | None) -> bytes | End:
    try:
        async with asyncio.timeout_at(deadline):
            return await call.down.receive()
    except TimeoutError:
        raise RpcError(Code.DEADLINE, f"{call.path}: no answer in time") from None


async def _only(method: Method, answers: AsyncGenerator[Any, None]) -> Any:
    async with aclosing(answers):
        found = [answer async for answer in answers]
    if len(found) != 1:
        raise RpcError(Code.INTERNAL, f"{method.path} gave {len(found)} answers instead of one")
    return found[0]


async def _end_sender(sender: asyncio.Task[None]) -> Exception | None:
    """Stop sending; what made it fail before, if anything did."""
    sender.cancel()
    (outcome,) = await asyncio.gather(sender, return_exceptions=True)
    return outcome if isinstance(outcome, Exception) else None


async def _one(request: Req) -> AsyncIterator[Req]:
    yield request
