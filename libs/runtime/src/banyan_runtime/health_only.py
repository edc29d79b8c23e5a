"""A service that nobody calls, behind a server that answers health and reflection only."""

from __future__ import annotations

import logging
from typing import Protocol

from banyan_runtime.rpc import Network, Server


class Listener(Protocol):
    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class HealthOnly:
    """Its health is that of the service: not serving from the moment in which that stops."""

    def __init__(
        self, service: Listener, network: Network, address: str, logger: logging.Logger
    ) -> None:
        self._service = service
        self._network = network
        self._address = address
        self._logger = logger
        self._server: Server | None = None

    async def start(self, name: str, **news: object) -> None:
        """Serve, and log it as "<name> serves" with `news`. Raises OSError: no such address."""
        self._server = await self._network.serve(self._address, [])
        await self._service.start()
        self._server.set_serving(True)
        self._logger.info(f"{name} serves", extra={"address": self._server.address, **news})

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.set_serving(False)
        await self._service.stop(grace_s)
        if self._server is not None:
            await self._server.stop(grace_s)
