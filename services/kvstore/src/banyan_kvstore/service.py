"""The KV store: blocks by content hash in tiers, and the writer of the index.

Never a single point of failure: all in it can be recomputed, and the index is only a hint.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from banyan_core.policies.routing_view import STORE_PREFIX
from banyan_kvstore.indexer import Indexer, IndexerOptions
from banyan_kvstore.kv_events import StoreEvents
from banyan_kvstore.metrics import KvStoreMetrics
from banyan_kvstore.servicer import MAX_INFLIGHT_BYTES, KvStoreServicer
from banyan_kvstore.tiers import Tiers
from banyan_runtime.bus import Bus, EventProducer
from banyan_runtime.clock import Clock
from banyan_runtime.kv_index import KvIndex
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Recorder
from banyan_runtime.rpc import Network, Server
from banyan_runtime.tracing import NO_TRACING, Tracing


@dataclass(frozen=True, slots=True)
class KvStoreOptions:
    snapshot_s: float = 10.0
    max_inflight_bytes: int = MAX_INFLIGHT_BYTES
    indexer: IndexerOptions = field(default_factory=IndexerOptions)


class KvStoreService:
    """`store_id` starts with "kvstore-", so that routers can tell a store from a worker."""

    def __init__(
        self,
        store_id: str,
        address: str,
        network: Network,
        bus: Bus,
        index: KvIndex,
        clock: Clock,
        tiers: Tiers,
        options: KvStoreOptions,
        *,
        logger: logging.Logger,
        registry: CollectorRegistry,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        if not store_id.startswith(STORE_PREFIX):
            raise ValueError(f"store_id {store_id!r} must start with {STORE_PREFIX!r}")
        self._address = address
        self._network = network
        self._tiers = tiers
        self._options = options
        self._logger = logger
        self.epoch = epoch = clock.unix_ns()
        metrics = KvStoreMetrics(registry, tiers)
        self._events = StoreEvents(EventProducer(bus, clock, store_id, epoch))
        self._indexer = Indexer(
            f"{store_id}/{epoch}", bus, index, clock, metrics, logger, options.indexer, recorder
        )
        self._servicer = KvStoreServicer(
            tiers,
            self._events,
            metrics,
            epoch,
            lambda: self._indexer.is_writing,
            options.max_inflight_bytes,
            tracing,
        )
        self._tasks = Tasks()
        self._server: Server | None = None

    @property
    def bound_address(self) -> str:
        return self._address if self._server is None else self._server.address

    async def start(self) -> None:
        """Find what is on disk, then serve. Raises OSError: folder unusable, address taken."""
        await self._tiers.open()
        self._server = await self._network.serve(self._address, self._servicer.handlers())
        self._indexer.start(self._tasks)
        self._tasks.spawn("snapshots", self._say_all())
        self._tasks.spawn("block events", self._events.tell())
        self._tasks.spawn("copies to disk", self._copy_to_disk())
        self._server.set_serving(True)
        self._logger.info("kvstore serves", extra={"address": self.bound_address})

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones end, and put on disk what only memory has."""
        if self._server is not None:
            self._server.set_serving(False)
            await self._server.stop(grace_s)
        try:
            async with asyncio.timeout(grace_s):
                await self._tiers.flush()
        except TimeoutError:
            self._logger.warning("stopped before all of memory was on disk")
        self._events.flush()
        await self._tasks.cancel_all()

    async def _copy_to_disk(self) -> None:
        """A little at a time: a Put that must make room waits for it."""
        while True:
            self._events.changed(await self._tiers.copy_some())

    async def _say_all(self) -> None:
        """Repeat all that is held: heals whatever the bus, the fold or the index lost."""
        while True:
            self._events.snapshot(self._tiers.hashes())
            await asyncio.sleep(self._options.snapshot_s)
