"""The router: turns block hashes, lengths and class into a placement, with reasons.

It holds no state that a restart must keep, so any number may run: each watches all workers and
decides alone. It is never in the token path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from banyan_core.cluster import ClusterSnapshot, LivenessChanged
from banyan_core.placement import PlaceQuery
from banyan_core.placer import PlaceDecided, Placer, PlacerCommand, PlacerFact, PlaceWanted
from banyan_core.policies.routing_view import Holdings, RoutingPolicy
from banyan_core.types import BlockHash
from banyan_router.metrics import RouterMetrics
from banyan_router.prefixes import Prefixes
from banyan_router.servicer import RouterServicer
from banyan_router.watch import WorkerWatch
from banyan_runtime.bus import Bus
from banyan_runtime.clock import Clock
from banyan_runtime.directory import Directory
from banyan_runtime.kv_index import KvIndex
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, PumpOverflow, Recorder
from banyan_runtime.rpc import Code, Network, RpcError, Server
from banyan_runtime.tracing import NO_TRACING, Tracing

MAX_ASKS = 10_000


class RouterService:
    """`address` is where it serves; `bound_address` has the real port once it is started."""

    def __init__(
        self,
        router_id: str,
        address: str,
        network: Network,
        bus: Bus,
        index: KvIndex,
        directory: Directory,
        clock: Clock,
        policy: RoutingPolicy,
        seed: int,
        *,
        logger: logging.Logger,
        registry: CollectorRegistry,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._address = address
        self._network = network
        self._clock = clock
        self._logger = logger
        self._metrics = RouterMetrics(registry)
        self._placer = Placer(router_id, policy, seed)
        self._pump = Pump[PlacerFact, PlacerCommand](self._placer, clock, self._apply, recorder)
        self._watch = WorkerWatch(network, directory, self._pump.feed, self._logger)
        self._prefixes = Prefixes(bus, index, clock, self._metrics, logger)
        self._servicer = RouterServicer(self, self._prefixes, tracing)
        self._asks: dict[int, asyncio.Future[PlaceDecided]] = {}
        self._num_asks = 0
        self._tasks = Tasks()
        self._server: Server | None = None

    @property
    def bound_address(self) -> str:
        return self._address if self._server is None else self._server.address

    async def start(self) -> None:
        """Serve. Raises OSError when the address is taken.

        Returns at once; until the first worker has spoken, `Place` is refused with a time.
        """
        self._server = await self._network.serve(self._address, self._servicer.handlers())
        self._tasks.spawn("router pump", self._pump.run())
        self._tasks.spawn("router watch", self._watch.run(self._tasks))
        self._prefixes.start(self._tasks)
        self._server.set_serving(True)
        self._logger.info("router serves", extra={"address": self.bound_address})

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            self._server.set_serving(False)
            await self._server.stop(grace_s)
        await self._tasks.cancel_all()

    def snapshot(self) -> ClusterSnapshot:
        return self._placer.snapshot(self._clock.now_ns())

    async def find_prefixes(self, hashes: Sequence[BlockHash]) -> Holdings:
        """Who has the first of these blocks, as a placement would be told."""
        return await self._prefixes.find(hashes)

    async def decide(self, query: PlaceQuery, holdings: Holdings) -> PlaceDecided:
        """Queue the question behind the facts that came before it, and wait for the answer."""
        if len(self._asks) >= MAX_ASKS:
            raise RpcError(Code.EXHAUSTED, f"{MAX_ASKS} placements are waiting")
        self._num_asks += 1
        ask = self._num_asks
        answer: asyncio.Future[PlaceDecided] = asyncio.get_running_loop().create_future()
        self._asks[ask] = answer
        try:
            self._pump.feed(PlaceWanted(ask, query, holdings))
            return await answer
        except PumpOverflow as error:
            raise RpcError(Code.EXHAUSTED, str(error)) from None
        finally:
            del self._asks[ask]

    def _apply(self, command: PlacerCommand) -> None:
        if isinstance(command, LivenessChanged):
            self._note_liveness(command)
            return
        self._metrics.decided(command)
        answer = self._asks.get(command.ask)
        if answer is not None and not answer.done():
            answer.set_result(command)

    def _note_liveness(self, change: LivenessChanged) -> None:
        self._metrics.viewed(self.snapshot())
        self._logger.info(
            "worker is live" if change.live else "worker is not live",
            extra={
                "worker_id": change.ref.worker_id,
                "epoch": change.ref.epoch,
                "why": change.reason,
            },
        )
