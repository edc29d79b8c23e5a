"""The twin of gRPC: the same methods, bounds and errors, over `memory_mesh`'s wires.

Messages cross as encoded bytes, so that nothing is shared by accident, and handlers run in tasks
of their own, as under gRPC. What a handler raises besides RpcError is INTERNAL for the caller
and is reported to the loop, which makes a simulation fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from google.protobuf.message import Message

from banyan_runtime.memory_mesh import (
    KEEPALIVE_S,
    End,
    MemoryMesh,
    Pipe,
    Signal,
    unavailable,
)
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
from banyan_runtime.trace_context import current_trace, enter_trace

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


class Call:
    """One call between two processes: a pipe up to the server, a pipe down to the client."""

    def __init__(
        self,
        mesh: MemoryMesh,
        client: MemoryNetwork,
        server: MemoryServer,
        path: str,
        traceparent: str | None,
    ) -> None:
        client_id, server_id = client.host_id, server.network.host_id
        self._mesh = mesh
        self.client = client
        self.server = server
        self.path = path
        self.traceparent = traceparent
        self.up = Pipe(mesh, client_id, server_id, path)
        self.down = Pipe(mesh, server_id, client_id, path)
        self.handler_task: asyncio.Task[None] | None = None
        self.is_complete = False
        mesh.calls[self] = None
        self.watch_partition()

    def start(self) -> None:
        """Knock at the server: it accepts or refuses when this reaches it."""
        self.up.signal(lambda: self.server.accept(self))

    def close(self) -> None:
        """The client is done with it; if that is early, the handler is cancelled."""
        self._mesh.calls.pop(self, None)
        if not self.is_complete:
            self.up.signal(self.cancel_handler)

    def cancel_handler(self) -> None:
        if self.handler_task is not None:
            self.handler_task.cancel()

    def cut(self, network: MemoryNetwork) -> None:
        """One of the two processes is dead."""
        if network is self.client:
            self.down.cut_target()
            self.up.cut_source(Signal(self.cancel_handler))
        if network is self.server.network:
            self.up.cut_target()
            self.down.cut_source(End(unavailable(self.server.address, "the connection broke")))

    def watch_partition(self) -> None:
        """If a partition holds this call now, break it when it still does after the keepalive."""
        if self.up.is_blocked or self.down.is_blocked:
            asyncio.get_running_loop().call_later(KEEPALIVE_S, self._break_if_blocked)

    def _break_if_blocked(self) -> None:
        if self in self._mesh.calls and (self.up.is_blocked or self.down.is_blocked):
            self.up.break_now(Signal(self.cancel_handler))
            self.down.break_now(End(unavailable(self.server.address, "keepalive timed out")))


class MemoryServer:
    """Made by `MemoryNetwork.serve`."""

    def __init__(self, network: MemoryNetwork, address: str, handlers: Sequence[Handler]) -> None:
        self.network = network
        self.is_serving = True
        self._address = address
        self._handlers = {handler.method.path: handler for handler in handlers}
        self._running: dict[asyncio.Task[None], None] = {}
        self._context = contextvars.copy_context()

    @property
    def address(self) -> str:
        return self._address

    def set_serving(self, serving: bool) -> None:
        self.is_serving = serving

    def accept(self, call: Call) -> None:
        """A call has reached this host: refuse it, or run its handler in a task."""
        handler = self._handlers.get(call.path)
        if self.network.mesh.servers.get(self._address) is not self:
            call.down.finish(RefusedError(f"{self._address}: connection refused"))
        elif handler is None:
            call.down.finish(RpcError(Code.INTERNAL, f"{call.path} is not served here"))
        else:
            # In the server's context, not in that of the client whose bytes arrived here.
            task = asyncio.get_running_loop().create_task(
                _serve(call, handler),
                name=f"{self._address}{call.path}",
                context=self._context.copy(),
            )
            self._running[task] = None
            task.add_done_callback(self._forget)
            call.handler_task = task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)

    def cancel_handlers(self) -> None:
        for task in list(self._running):
            task.cancel()

    async def stop(self, grace_s: float) -> None:
        if self.network.mesh.servers.get(self._address) is self:
            del self.network.mesh.servers[self._address]
        running = list(self._running)
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        self.cancel_handlers()
        await asyncio.gather(*running, return_exceptions=True)


async def _serve(call: Call, handler: Handler) -> None:
    """Run one handler to its end and send its outcome as the call's status."""
    enter_trace(call.traceparent)
    try:
        await _run_handler(call, handler)
    except RpcError as error:
        call.down.finish(error)
    except asyncio.CancelledError:
        call.down.finish(unavailable(call.server.address, "the server stopped the call"))
        raise
    except Exception as error:
        call.down.finish(RpcError(Code.INTERNAL, f"{call.path}: {type(error).__name__}: {error}"))
        report_handler_failure(call.path, error)
    else:
        call.down.finish()


async def _run_handler(call: Call, handler: Handler) -> None:
    method = handler.method
    requests = _incoming(call.up, method)
    async with aclosing(requests):
        if isinstance(method, (Unary, ServerStream)):
            answer = handler.function(await anext(requests))
        else:
            answer = handler.function(requests)
        if isinstance(method, (Unary, ClientStream)):
            await call.down.send(_encode(await answer))
            return
        async with aclosing(answer):
            async for response in answer:
                await call.down.send(_encode(response))


async def _incoming(pipe: Pipe, method: Method) -> AsyncGenerator[Any, None]:
    while isinstance(item := await pipe.receive(), bytes):
        yield method.request.FromString(item)


def _encode(message: Message) -> bytes:
    data = message.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        text = f"a message of {len(data)} bytes is larger than {MAX_MESSAGE_BYTES}"
        raise RpcError(Code.EXHAUSTED, text)
    return data


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
            await call.up.send(_encode(request))
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


class MemoryNetwork:
    """One process's access to the mesh, for one life: after a crash, make a new one."""

    def __init__(self, mesh: MemoryMesh, host_id: str) -> None:
        if host_id in mesh.hosts:
            raise ValueError(f"host_id {host_id!r} is in use")
        mesh.hosts[host_id] = self
        self.mesh = mesh
        self.host_id = host_id
        self.is_cut = False
        self._channels: dict[str, MemoryChannel] = {}

    def channel(self, address: str) -> MemoryChannel:
        if address not in self._channels:
            self._channels[address] = MemoryChannel(self, address)
        return self._channels[address]

    async def serve(self, address: str, handlers: Sequence[Handler]) -> MemoryServer:
        host, _, port = address.rpartition(":")
        if port == "0":
            address = f"{host}:{self.mesh.free_port()}"
        if address in self.mesh.servers:
            raise OSError(errno.EADDRINUSE, f"{address} is in use")
        server = MemoryServer(self, address, handlers)
        self.mesh.servers[address] = server
        return server

    async def close(self) -> None:
        servers = [server for server in self.mesh.servers.values() if server.network is self]
        for server in servers:
            await server.stop(0)
        self.mesh.crash(self.host_id)
