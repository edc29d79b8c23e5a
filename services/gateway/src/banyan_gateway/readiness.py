"""Whether a request that came now would find a router and a worker of this very model."""

from __future__ import annotations

from dataclasses import dataclass

from banyan.v1 import router_pb2
from banyan_core.types import ModelCard
from banyan_runtime import wire
from banyan_runtime.directory import Directory
from banyan_runtime.rpc import Network, RpcError

READY_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Of one gateway. `look` asks the routers in turn."""

    network: Network
    directory: Directory
    card: ModelCard

    async def look(self) -> tuple[bool, str]:
        """Yes when a router answers and knows a live worker that serves this very model."""
        problem = "no router is known"
        for address in await self.directory.addresses("router"):
            try:
                view = await self.network.channel(address).unary(
                    wire.VIEW, router_pb2.ViewRequest(), READY_TIMEOUT_S
                )
            except RpcError as error:
                problem = f"router {address}: {error.message}"
                continue
            return self._judge(view)
        return False, problem

    def _judge(self, view: router_pb2.ViewResponse) -> tuple[bool, str]:
        live = [worker for worker in view.workers if worker.live]
        if not live:
            return False, "no worker is live"
        if all(worker.card_digest != self.card.digest for worker in live):
            models = ", ".join(sorted({worker.model for worker in live}))
            return False, f"workers serve other model cards ({models}) than {self.card.name}"
        return True, "ready"
