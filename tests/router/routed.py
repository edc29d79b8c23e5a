"""A router with workers that only watch and report, all in one process on virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from prometheus_client import CollectorRegistry

from banyan.v1 import router_pb2, worker_pb2
from banyan_core.index_facts import Position
from banyan_core.placement import Decision, Placement, PlaceQuery
from banyan_core.policies import RoutingPolicy
from banyan_core.policies.routing import LeastTokens
from banyan_core.types import (
    BlockHash,
    ModelCard,
    Refusal,
    Role,
    WorkerLoad,
    WorkerRef,
    equal_layers,
)
from banyan_router.service import RouterService
from banyan_runtime import codec, wire
from banyan_runtime.bus import EventProducer, Headers
from banyan_runtime.kv_index import KvIndex
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.pump import Recorder
from banyan_runtime.rpc import serve_stream
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual

T = TypeVar("T")

CARD = ModelCard(
    name="demo",
    weights_digest=b"w",
    tokenizer_digest=b"t",
    context_tokens=4096,
    end_token_ids=(0,),
    block_size=16,
    kv_layout=equal_layers(2, 2, 8, "float32"),
    numerics="deterministic",
)


class ListedDirectory:
    """A directory whose content a test changes."""

    def __init__(self) -> None:
        self.listed: dict[str, tuple[str, ...]] = {}

    async def addresses(self, service: str) -> tuple[str, ...]:
        return self.listed.get(service, ())


class WatchedWorker:
    """Serves `Watch` and nothing else: its card, then its load at each change or every second."""

    def __init__(self, mesh: MemoryMesh, worker_id: str, role: Role, epoch: int = 1) -> None:
        self.ref = WorkerRef(worker_id, epoch, f"{worker_id}:1", role)
        self.num_watches = 0
        self.is_mute = False
        self._load = WorkerLoad(num_free_blocks=64)
        self._changed = asyncio.Event()
        self._network = MemoryNetwork(mesh, f"{worker_id}/{epoch}")

    async def start(self) -> None:
        await self._network.serve(self.ref.address, [serve_stream(wire.WATCH, self._watch)])

    def crash(self) -> None:
        self._network.mesh.crash(self._network.host_id)

    def report(self, load: WorkerLoad) -> None:
        self._load = load
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self, _: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WorkerReport]:
        self.num_watches += 1
        await self._silence()
        first = self._report()
        first.card.CopyFrom(codec.model_card_to_pb(CARD))
        first.num_blocks = 64
        yield first
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._changed.wait()
            except TimeoutError:
                pass
            await self._silence()
            yield self._report()

    async def _silence(self) -> None:
        if self.is_mute:
            await asyncio.sleep(3600)

    def _report(self) -> worker_pb2.WorkerReport:
        return worker_pb2.WorkerReport(
            worker=codec.worker_ref_to_pb(self.ref), load=codec.worker_load_to_pb(self._load)
        )


class SlowIndex(MemoryKvIndex):
    """Answers too late to be of use. Lets itself be copied when a test says so."""

    slow_lookups = True

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        if self.slow_lookups:
            await asyncio.sleep(1.0)
        return await super().lookup(hashes)

    async def positions(self) -> Mapping[str, Position]:
        await asyncio.sleep(3600)
        return await super().positions()


class LossyBus(MemoryBus):
    """Its buffer is full when a test says so."""

    is_full = False

    def publish(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> bool:
        return not self.is_full and super().publish(topic, key, value, headers)


class Routed:
    """The mesh of one test. The workers are listed under their roles."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.clock = loop.clock
        self.mesh = MemoryMesh()
        self.directory = ListedDirectory()
        self.broker = MemoryBroker()
        self.workers_bus = LossyBus(self.broker)
        self.index_server = MemoryIndexServer(self.clock)
        self.index = MemoryKvIndex(self.index_server)
        self.registry = CollectorRegistry()
        self.gateway = MemoryNetwork(self.mesh, "gateway-0")
        self.router: RouterService | None = None

    async def worker(self, worker_id: str, role: Role, epoch: int = 1) -> WatchedWorker:
        worker = WatchedWorker(self.mesh, worker_id, role, epoch)
        await worker.start()
        known = self.directory.listed.get(role.value, ())
        self.directory.listed[role.value] = tuple(sorted({*known, worker.ref.address}))
        return worker

    async def start(
        self,
        policy: RoutingPolicy | None = None,
        index: KvIndex | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.router = RouterService(
            "router-0",
            "router-0:1",
            MemoryNetwork(self.mesh, "router-0"),
            MemoryBus(self.broker),
            index or MemoryKvIndex(self.index_server),
            self.directory,
            self.clock,
            policy or LeastTokens(),
            seed=1,
            logger=logging.getLogger("test"),
            registry=self.registry,
            recorder=recorder,
        )
        await self.router.start()

    def producer(self, name: str, epoch: int = 1) -> EventProducer:
        """The voice of a worker or a store."""
        return EventProducer(self.workers_bus, self.clock, name, epoch)

    async def index_has(
        self, holder: str, hashes: Sequence[BlockHash], seq: int = 1, epoch: int = 1
    ) -> None:
        """As the index's writer would have it, had it heard the holder up to `seq`."""
        fence = await self.index.acquire("test", 3600.0)
        assert fence is not None
        await self.index.replace(fence, holder, Position(epoch, seq), hashes, 3600.0)

    def figure(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"banyan_router_{name}", labels)

    async def place(self, query: PlaceQuery) -> tuple[Placement | Refusal, Decision]:
        channel = self.gateway.channel("router-0:1")
        request = codec.place_query_to_pb(replace(query, card_digest=CARD.digest))
        return codec.place_response_from_pb(await channel.unary(wire.PLACE, request, 1.0))

    async def pair(self, query: PlaceQuery) -> tuple[str | None, str]:
        outcome, _ = await self.place(query)
        assert isinstance(outcome, Placement), outcome
        prefill = None if outcome.prefill is None else outcome.prefill.worker_id
        return prefill, outcome.decode.worker_id

    async def view(self) -> list[router_pb2.ViewedWorker]:
        channel = self.gateway.channel("router-0:1")
        response = await channel.unary(wire.VIEW, router_pb2.ViewRequest(), 1.0)
        return list(response.workers)

    async def live(self) -> list[str]:
        return [viewed.worker.worker_id for viewed in await self.view() if viewed.live]

    async def stop(self) -> None:
        if self.router is not None:
            await self.router.stop(0.0)
        await self.workers_bus.close()
        for host in list(self.mesh.hosts):
            self.mesh.crash(host)
        await asyncio.sleep(0.01)


async def two_and_two(routed: Routed) -> None:
    for worker_id, role in (("p0", Role.PREFILL), ("p1", Role.PREFILL)):
        await routed.worker(worker_id, role)
    for worker_id, role in (("d0", Role.DECODE), ("d1", Role.DECODE)):
        await routed.worker(worker_id, role)


def virtually(test: Callable[[Routed], Awaitable[T]], seed: int = 0) -> T:
    """Run `test` on a fresh mesh, and end everything after it."""

    async def main() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        routed = Routed(loop)
        try:
            return await test(routed)
        finally:
            await routed.stop()

    return run_virtual(main, seed)
