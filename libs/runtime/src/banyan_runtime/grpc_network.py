"""The real RPC seam: a process's servers and channels over gRPC, with health and reflection."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]  # it ships no types
    health,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]  # nor does this

from banyan_runtime.grpc_call_desk import CallDesk
from banyan_runtime.grpc_channel import GrpcChannel
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.grpc_server import SERVER_OPTIONS, GrpcServer, generic_handlers
from banyan_runtime.listening import cannot_listen, listen
from banyan_runtime.rpc import Handler


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
        server = grpc.aio.server(options=SERVER_OPTIONS)
        calls = CallDesk(handlers, self._traced)
        handlers = (*handlers, calls.handler())
        generic = generic_handlers(handlers, self._traced)
        server.add_generic_rpc_handlers(generic)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        names = [handler.method.path.split("/")[1] for handler in handlers]
        names += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(sorted(set(names)), server)
        port = self._bind(server, address)
        await server.start()
        bound = GrpcServer(server, f"{address.rpartition(':')[0]}:{port}", servicer, calls)
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
