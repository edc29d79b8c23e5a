"""How each service is built from the twins: what its `main` does with the real adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from banyan_autoscaler.actuators import DryRunActuator
from banyan_autoscaler.service import AutoscalerService
from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.hashing import derive
from banyan_core.journey_limits import JourneyLimits
from banyan_core.policies.routing import PrefixCost
from banyan_core.policies.routing_view import RoutingPolicy
from banyan_core.runner import Runner
from banyan_core.scaling_config import ScalingConfig
from banyan_core.slo import SloTable
from banyan_core.types import ModelCard, Role, WorkerRef
from banyan_gateway.gateway import Gateway, GatewayOptions
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_metrics.service import MetricsService
from banyan_router.service import RouterService
from banyan_runtime.clock import Clock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.directory import Directory
from banyan_runtime.memory_bus import MemoryBus
from banyan_runtime.memory_index import MemoryKvIndex
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.offload import InlineOffload
from banyan_runtime.pump import Recorder
from banyan_runtime.tracing import NO_TRACING, Tracing
from banyan_runtime.virtual_loop import VirtualClock
from banyan_text.card import echo_card
from banyan_text.tokenizer import ByteTokenizer
from banyan_worker.options import WorkerOptions
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import InlineExecutor

MESH_SECRET = b"simulated"
STORE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Shared:
    """What all hosts of a simulation agree on."""

    seed: int = 0
    block_size: int = 16
    num_blocks: int = 256
    latency: EchoLatency = field(default_factory=EchoLatency)
    runner: Callable[[int, int, EchoLatency], Runner] = EchoRunner
    policy: RoutingPolicy = field(default_factory=PrefixCost)
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    journey: JourneyLimits = field(default_factory=JourneyLimits)
    max_open_requests: int = 1000
    scaling: ScalingConfig = field(default_factory=lambda: ScalingConfig({}))
    recorders: Mapping[str, Recorder] = field(default_factory=dict)  # by host id
    tracing: Callable[[str, Clock], Tracing] | None = None  # of a host, on its clock

    @property
    def card(self) -> ModelCard:
        return echo_card(self.block_size, "deterministic")


@dataclass(frozen=True, slots=True)
class Site:
    """What one life of one host is given."""

    host_id: str
    address: str
    network: MemoryNetwork
    bus: MemoryBus
    index: MemoryKvIndex
    clock: VirtualClock
    directory: Directory
    shared: Shared

    @property
    def recorder(self) -> Recorder | None:
        return self.shared.recorders.get(self.host_id)

    @property
    def tracing(self) -> Tracing:
        make = self.shared.tracing
        return NO_TRACING if make is None else make(self.host_id, self.clock)

    @property
    def logger(self) -> logging.Logger:
        return logging.getLogger(f"banyan.sim.{self.host_id}")


def directory(hosts: Mapping[str, tuple[str, ...]]) -> Directory:
    return StaticDirectory(
        {service: tuple(f"{host}:1" for host in found) for service, found in hosts.items()}
    )


def gateway(site: Site) -> Gateway:
    shared = site.shared
    return Gateway(
        site.host_id,
        site.clock.unix_ns(),
        shared.card,
        ByteTokenizer(),
        site.network,
        site.directory,
        site.bus,
        site.clock,
        InlineOffload(),
        site.logger,
        GatewayOptions(MESH_SECRET, shared.max_open_requests, shared.journey),
        site.recorder,
        site.tracing,
    )


def router(site: Site) -> RouterService:
    return RouterService(
        site.host_id,
        site.address,
        site.network,
        site.bus,
        site.index,
        site.directory,
        site.clock,
        site.shared.policy,
        derive(site.shared.seed, site.host_id),
        logger=site.logger,
        registry=CollectorRegistry(),
        recorder=site.recorder,
        tracing=site.tracing,
    )


def kvstore(site: Site) -> KvStoreService:
    return KvStoreService(
        site.host_id,
        site.address,
        site.network,
        site.bus,
        site.index,
        site.clock,
        Tiers(MemoryTier(STORE_BYTES), None),
        KvStoreOptions(),
        logger=site.logger,
        registry=CollectorRegistry(),
        recorder=site.recorder,
        tracing=site.tracing,
    )


def autoscaler(site: Site) -> AutoscalerService:
    return AutoscalerService(
        site.host_id,
        site.bus,
        site.clock,
        DryRunActuator(site.directory),
        site.shared.scaling,
        logger=site.logger,
        registry=CollectorRegistry(),
        recorder=site.recorder,
    )


def metrics(site: Site) -> MetricsService:
    return MetricsService(
        site.host_id,
        site.bus,
        site.clock,
        SloTable(),
        CollectorRegistry(),
        site.logger,
        site.recorder,
        site.tracing,
    )


def worker(site: Site) -> WorkerService:
    shared = site.shared
    role = Role(site.host_id.rpartition("-")[0])
    return WorkerService(
        WorkerRef(site.host_id, site.clock.unix_ns(), site.address, role),
        shared.card,
        shared.runner(shared.num_blocks, shared.block_size, shared.latency),
        site.network,
        site.bus,
        site.directory,
        site.clock,
        InlineExecutor(),
        shared.worker,
        logger=site.logger,
        recorder=site.recorder,
        tracing=site.tracing,
    )
