"""One call over `memory_mesh`, and how it breaks when a process dies or a partition holds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from banyan_runtime.memory_mesh import KEEPALIVE_S, End, MemoryMesh, Pipe, Signal, unavailable
from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.rpc_bounds import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from banyan_runtime.memory_network import MemoryNetwork
    from banyan_runtime.memory_server import MemoryServer


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


def encode(message: Message) -> bytes:
    """What crosses a pipe, within the bound that gRPC has."""
    data = message.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        text = f"a message of {len(data)} bytes is larger than {MAX_MESSAGE_BYTES}"
        raise RpcError(Code.EXHAUSTED, text)
    return data
