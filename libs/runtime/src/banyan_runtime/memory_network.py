"""The twin of gRPC: the same methods, bounds and errors, over `memory_mesh`'s wires.

Messages cross as encoded bytes, so that nothing is shared by accident, and handlers run in tasks
of their own, as under gRPC.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from banyan_runtime.memory_channel import MemoryChannel
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_server import MemoryServer
from banyan_runtime.rpc import Handler


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
