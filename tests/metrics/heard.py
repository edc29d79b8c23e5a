"""A metrics service on the twins, and producers that speak to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry

from banyan_core.events import (
    GatewayAlive,
    RequestAccepted,
    RequestEnded,
    ScaleDecided,
    WorkerAlive,
    WorkerGone,
)
from banyan_core.slo import SloTable, SloTarget
from banyan_core.types import NS_PER_MS, NS_PER_S, Outcome, Role, WorkerLoad, WorkerRef
from banyan_metrics.service import MetricsService
from banyan_runtime.bus import REQUEST_EVENTS, SCALE_EVENTS, WORKER_EVENTS, EventProducer
from banyan_runtime.event_codec import payload_to_pb
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual

T = TypeVar("T")
MS = NS_PER_MS
LEASE = 3 * NS_PER_S
TARGETS = SloTable(SloTarget(ttft_s=0.2))


class Mesh:
    """One broker, any number of producers and listeners."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.clock = loop.clock
        self.broker = MemoryBroker()
        self._buses: list[MemoryBus] = []
        self._services: list[MetricsService] = []

    def bus(self) -> MemoryBus:
        bus = MemoryBus(self.broker)
        self._buses.append(bus)
        return bus

    async def metrics(self) -> tuple[MetricsService, CollectorRegistry]:
        registry = CollectorRegistry()
        service = MetricsService(
            "metrics-0",
            self.bus(),
            self.clock,
            TARGETS,
            registry=registry,
            logger=logging.getLogger("test"),
        )
        self._services.append(service)
        await service.start()
        return service, registry

    def gateway(self, name: str = "gateway-0", epoch: int = 1) -> GatewayVoice:
        return GatewayVoice(EventProducer(self.bus(), self.clock, name, epoch))

    def worker(self, name: str = "decode-0", epoch: int = 1) -> WorkerVoice:
        return WorkerVoice(EventProducer(self.bus(), self.clock, name, epoch), name, epoch)

    def decide(self, decided: ScaleDecided) -> None:
        producer = EventProducer(self.bus(), self.clock, "autoscaler-0", 1)
        producer.emit(SCALE_EVENTS, payload_to_pb(decided))

    async def stop(self) -> None:
        for service in self._services:
            await service.stop(0.0)
        for bus in self._buses:
            await bus.close()


class GatewayVoice:
    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    def accepted(self, request_id: str, tenant: str = "t") -> None:
        event = RequestAccepted(request_id, tenant, "m", 10, True)
        self._producer.emit(REQUEST_EVENTS, payload_to_pb(event))

    def ended(
        self,
        request_id: str,
        outcome: Outcome = Outcome.FINISHED,
        *,
        tenant: str = "t",
        ttft_ms: int = 100,
    ) -> None:
        """Ten prompt tokens, four of them cached; eleven output tokens, 20 ms apart."""
        event = RequestEnded(
            request_id,
            tenant,
            "m",
            outcome,
            num_prompt_tokens=10,
            num_cached_tokens=4,
            num_output_tokens=11,
            ttft_ns=ttft_ms * MS,
            e2e_ns=(ttft_ms + 200) * MS,
            itl_ns=(20 * MS,) * 10,
            num_recoveries=1,
            ledger=(("queue", 50 * MS), ("decode", 250 * MS)),
            prefill_worker_id="prefill-0",
            decode_worker_id="decode-0",
            finish_reasons=("length",),
        )
        self._producer.emit(REQUEST_EVENTS, payload_to_pb(event))

    def alive(self, num_requests: int) -> None:
        self._producer.emit(REQUEST_EVENTS, payload_to_pb(GatewayAlive(num_requests, LEASE)))


class WorkerVoice:
    def __init__(self, producer: EventProducer, name: str, epoch: int) -> None:
        self._producer = producer
        self._ref = WorkerRef(name, epoch, f"{name}:1", Role.DECODE)

    def alive(self, num_running: int = 2) -> None:
        load = WorkerLoad(num_running=num_running, num_waiting=1, num_free_blocks=16)
        event = WorkerAlive(self._ref, "m", 64, load, LEASE)
        self._producer.emit(WORKER_EVENTS, payload_to_pb(event))

    def gone(self, reason: str) -> None:
        self._producer.emit(WORKER_EVENTS, payload_to_pb(WorkerGone(self._ref, reason)))


def virtually(test: Callable[[Mesh], Awaitable[T]], seed: int = 0) -> T:
    """Run `test` on a fresh mesh, and end everything after it."""

    async def main() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        mesh = Mesh(loop)
        try:
            return await test(mesh)
        finally:
            await mesh.stop()

    return run_virtual(main, seed)
