"""All seven services in one process, on virtual time: the services' own code, the twins' wires.

A host is one simulated process. `crash` cuts its ports (RPC, bus, index) before it drops its
tasks, so that nothing they do afterwards is seen; `restart` is a new life with a new epoch on the
same address. The bus and the index server are hosts of their own: `broker` and `index_server`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from banyan_gateway.gateway import Gateway
from banyan_metrics.service import MetricsService
from banyan_router.service import RouterService
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.virtual_loop import VirtualLoop
from banyan_sim import builders
from banyan_sim.hosts import HostTasks, on_host
from banyan_worker.service import WorkerService

READY_POLL_S = 0.02
STOP_GRACE_S = 2.0


Act = Callable[[], Coroutine[Any, Any, None] | None]
"""Something done to the mesh from outside."""


class Service(Protocol):
    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Topology:
    """How many hosts of each service, and what all of them share."""

    num_prefill: int = 1
    num_decode: int = 1
    num_routers: int = 1
    num_gateways: int = 1
    num_kvstores: int = 1
    shared: builders.Shared = field(default_factory=builders.Shared)

    def hosts(self) -> dict[str, tuple[str, ...]]:
        """Host ids by service, in the order in which they start."""
        counts = {
            "kvstore": self.num_kvstores,
            "router": self.num_routers,
            "prefill": self.num_prefill,
            "decode": self.num_decode,
            "gateway": self.num_gateways,
            "autoscaler": 1,
            "metrics": 1,
        }
        return {
            service: tuple(f"{service}-{number}" for number in range(count))
            for service, count in counts.items()
        }


@dataclass(slots=True)
class Host:
    """One life of one simulated process."""

    service: Service
    network: MemoryNetwork
    bus: MemoryBus
    index: MemoryKvIndex


class SimMesh:
    """Owns the hosts. Use on a `VirtualLoop` only."""

    def __init__(self, topology: Topology) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise TypeError("a SimMesh runs on virtual time: use banyan_runtime.run_virtual")
        self.loop = loop
        self.topology = topology
        self.wires = MemoryMesh()
        self.broker = MemoryBroker()
        self.index_server = MemoryIndexServer(loop.clock)
        self.hosts: dict[str, Host] = {}
        self._tasks = HostTasks()
        self._tasks.install(loop)
        self._chores: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ lives

    async def start(self) -> None:
        """Bring all hosts up and wait until a request can be served."""
        for service, host_ids in self.topology.hosts().items():
            for host_id in host_ids:
                await self.start_host(service, host_id)
        await self.wait_ready()

    async def start_host(self, service: str, host_id: str) -> None:
        with on_host(host_id):
            network = MemoryNetwork(self.wires, host_id)
            bus, index = MemoryBus(self.broker), MemoryKvIndex(self.index_server)
            site = builders.Site(
                host_id=host_id,
                address=f"{host_id}:1",
                network=network,
                bus=bus,
                index=index,
                clock=self.loop.clock,
                directory=builders.directory(self.topology.hosts()),
                shared=self.topology.shared,
            )
            built = _BUILDERS[service](site)
            self.hosts[host_id] = Host(built, network, bus, index)
            await asyncio.create_task(built.start(), name=f"start {host_id}")

    def crash(self, host_id: str) -> None:
        """Kill -9. Does nothing for a host that is down."""
        host = self.hosts.pop(host_id, None)
        if host is None:
            return
        self.wires.crash(host_id)
        host.bus.cut()
        host.index.cut()
        self._tasks.kill(host_id)

    async def restart(self, host_id: str) -> None:
        self.crash(host_id)
        await asyncio.sleep(0.001)  # a new life begins at a later instant: a new epoch
        await self.start_host(host_id.rpartition("-")[0], host_id)

    async def restart_dead(self) -> None:
        """A new life for every host that is down."""
        for service, host_ids in self.topology.hosts().items():
            for host_id in host_ids:
                if host_id not in self.hosts:
                    await self.start_host(service, host_id)

    async def stop_host(self, host_id: str, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM: the service drains and stops; then the process is gone."""
        host = self.hosts.pop(host_id)
        await host.service.stop(grace_s)
        await host.bus.close()
        await host.network.close()

    def later(self, delay_s: float, act: Act) -> None:
        """Do something to the mesh after a while, from outside of all its hosts."""

        async def wait_and_act() -> None:
            await asyncio.sleep(delay_s)
            done = act()
            if done is not None:
                await done

        self._chores.append(asyncio.create_task(wait_and_act(), name="chore"))

    async def stop(self) -> None:
        """Wait for what `later` still has to do, then stop every host."""
        await asyncio.gather(*self._chores)
        for host_id in reversed(list(self.hosts)):
            await self.stop_host(host_id)

    def take_down(self, part: str, *, lose_content: bool) -> None:
        """Stop the `bus` or the `index` server, with or without what it keeps."""
        if part == "bus":
            self.broker.down(lose_records=lose_content)
        else:
            self.index_server.down(lose_content=lose_content)

    def bring_up(self, part: str) -> None:
        (self.broker if part == "bus" else self.index_server).up()

    # ------------------------------------------------------------ parts

    @property
    def gateway(self) -> Gateway:
        return self.gateway_of("gateway-0")

    def gateway_of(self, host_id: str) -> Gateway:
        service = self.hosts[host_id].service
        assert isinstance(service, Gateway)
        return service

    @property
    def metrics(self) -> MetricsService:
        service = self.hosts["metrics-0"].service
        assert isinstance(service, MetricsService)
        return service

    def workers(self) -> dict[str, WorkerService]:
        """Live workers by host id."""
        return {
            host_id: host.service
            for host_id, host in self.hosts.items()
            if isinstance(host.service, WorkerService)
        }

    def routers(self) -> dict[str, RouterService]:
        return {
            host_id: host.service
            for host_id, host in self.hosts.items()
            if isinstance(host.service, RouterService)
        }

    async def wait_ready(self) -> None:
        """Until every live router sees every live worker."""
        wanted = len(self.workers())
        while any(_num_live(router) < wanted for router in self.routers().values()):
            await asyncio.sleep(READY_POLL_S)

    async def wait_idle(self, timeout_s: float) -> None:
        """Until no worker has work, leases or used blocks. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while any(_is_busy(worker) for worker in self.workers().values()):
                await asyncio.sleep(READY_POLL_S)


def _is_busy(worker: WorkerService) -> bool:
    return not worker.work.idle or worker.engine.num_used_blocks > 0


def _num_live(router: RouterService) -> int:
    return sum(worker.live for worker in router.snapshot().workers)


_BUILDERS: dict[str, Callable[[builders.Site], Service]] = {
    "gateway": builders.gateway,
    "router": builders.router,
    "prefill": builders.worker,
    "decode": builders.worker,
    "kvstore": builders.kvstore,
    "autoscaler": builders.autoscaler,
    "metrics": builders.metrics,
}
