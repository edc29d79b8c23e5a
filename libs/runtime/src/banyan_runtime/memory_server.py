"""The serving side of the twin of gRPC: a call's handler runs in a task of its own, to its end.

What a handler raises besides RpcError is INTERNAL for the caller and is reported to the loop,
which makes a simulation fail.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from banyan_runtime.memory_call import Call, encode
from banyan_runtime.memory_mesh import Pipe, unavailable
from banyan_runtime.rpc import (
    ClientStream,
    Code,
    Handler,
    Method,
    RefusedError,
    RpcError,
    ServerStream,
    Unary,
)
from banyan_runtime.rpc_bounds import report_handler_failure
from banyan_runtime.trace_context import enter_trace

if TYPE_CHECKING:
    from banyan_runtime.memory_network import MemoryNetwork


class MemoryServer:
    """Made by `MemoryNetwork.serve`."""

    def __init__(self, network: MemoryNetwork, address: str, handlers: Sequence[Handler]) -> None:
        self.network = network
        self._address = address
        self._handlers = {handler.method.path: handler for handler in handlers}
        self._running: dict[asyncio.Task[None], None] = {}
        self._context = contextvars.copy_context()

    @property
    def address(self) -> str:
        return self._address

    def set_serving(self, serving: bool) -> None:
        """Nobody asks for a twin's health."""

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
            await call.down.send(encode(await answer))
            return
        async with aclosing(answer):
            async for response in answer:
                await call.down.send(encode(response))


async def _incoming(pipe: Pipe, method: Method) -> AsyncGenerator[Any, None]:
    while isinstance(item := await pipe.receive(), bytes):
        yield method.request.FromString(item)
