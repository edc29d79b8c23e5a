"""The index's writer: folds what all producers say and writes it, while it holds the lease.

Any number of stores may run an indexer; all fold, one writes. The lease's fencing token goes with
every write, so a writer that was paused and lost the lease is stopped by the index itself. Who
takes the lease, or finds the index again after it was away, writes all of its fold once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from banyan_core.index_facts import (
    AddBlocks,
    DropHolder,
    IndexCommand,
    IndexFact,
    RemoveBlocks,
    ReplaceBlocks,
    SetEpoch,
)
from banyan_core.index_fold import IndexFold
from banyan_core.types import NS_PER_S
from banyan_kvstore.index_writes import take_run
from banyan_kvstore.metrics import KvStoreMetrics
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS, Bus, Since
from banyan_runtime.clock import Clock
from banyan_runtime.kv_facts import fact_of, parse
from banyan_runtime.kv_index import Fenced, IndexUnavailable, KvIndex
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, Recorder

_LINGER_S = 0.01
"""Waited for more before what is new is written: a write of many costs hardly more than of one."""


@dataclass(frozen=True, slots=True)
class IndexerOptions:
    """Entries outlive several of their producers' snapshots; each snapshot renews them."""

    lease_s: float = 3.0
    entry_ttl_s: float = 300.0
    max_waiting: int = 10_000


class Indexer:
    """Runs as tasks of the store; `is_writing` says whether it holds the lease."""

    def __init__(
        self,
        owner: str,
        bus: Bus,
        index: KvIndex,
        clock: Clock,
        metrics: KvStoreMetrics,
        logger: logging.Logger,
        options: IndexerOptions,
        recorder: Recorder | None = None,
    ) -> None:
        self._owner = owner
        self._bus = bus
        self._index = index
        self._clock = clock
        self._metrics = metrics
        self._logger = logger
        self._options = options
        self._fold = IndexFold()
        self._pump = Pump[IndexFact, IndexCommand](self._fold, clock, self._apply, recorder)
        self._renew_s = options.lease_s / 3
        self._fence: int | None = None
        self._waiting: deque[IndexCommand] = deque()
        self._whole_fold_due = False
        self._changed = asyncio.Event()

    @property
    def is_writing(self) -> bool:
        return self._fence is not None

    def start(self, tasks: Tasks) -> None:
        tasks.spawn("indexer fold", self._pump.run())
        tasks.spawn("indexer ear", self._listen())
        tasks.spawn("indexer writer", self._write())

    async def _listen(self) -> None:
        async for record in self._bus.subscribe((KV_EVENTS, WORKER_EVENTS), Since.START):
            try:
                event = parse(record.value)
                fact = fact_of(event)
            except ValueError as error:
                why = {"topic": record.topic, "cursor": record.cursor, "why": str(error)}
                self._logger.warning("event dropped", extra=why)
                continue
            lag_ns = self._clock.unix_ns() - event.time_unix_ns
            self._metrics.index_lag.set(lag_ns / NS_PER_S)
            if fact is not None:
                self._pump.feed(fact)

    def _apply(self, command: IndexCommand) -> None:
        """Queue a write. In standby nothing is queued: the fold itself remembers."""
        if self._fence is None or self._whole_fold_due:
            return
        if len(self._waiting) >= self._options.max_waiting:
            self._rewrite()
            return
        self._waiting.append(command)
        self._changed.set()

    def _rewrite(self) -> None:
        """Forget what waits: the next write is the whole fold."""
        self._waiting.clear()
        self._whole_fold_due = True
        self._changed.set()

    async def _write(self) -> None:
        """Hold or seek the lease for ever, and write while it is held."""
        while True:
            try:
                await self._hold_lease()
                if self._fence is not None:
                    await self._write_until_renewal(self._fence)
            except Fenced as error:
                self._metrics.fenced.inc()
                self._lose(str(error))
            except IndexUnavailable as error:
                self._metrics.index_unavailable.inc()
                self._lose(str(error))
            self._metrics.stale_producers.set(len(self._fold.stale()))
            if self._fence is None:
                await asyncio.sleep(self._renew_s)

    async def _hold_lease(self) -> None:
        fence = await self._index.acquire(self._owner, self._options.lease_s)
        if fence == self._fence:
            return
        if fence is None:
            self._lose("another store holds the lease")
            return
        # A new token: the lease was elsewhere, or the index lost its content.
        self._fence = fence
        self._metrics.indexing.set(1)
        self._logger.info("writing the index", extra={"fence": fence})
        self._rewrite()

    def _lose(self, why: str) -> None:
        if self._fence is not None:
            self._logger.warning("not writing the index", extra={"why": why})
        self._fence = None
        self._metrics.indexing.set(0)
        self._waiting.clear()
        self._whole_fold_due = False

    async def _write_until_renewal(self, fence: int) -> None:
        """Write what waits and what comes, until it is time to renew the lease."""
        until = self._clock.now_ns() + round(self._renew_s * NS_PER_S)
        while (left_ns := until - self._clock.now_ns()) > 0:
            if self._whole_fold_due:
                self._whole_fold_due = False
                self._waiting.extend(self._fold.everything())
            if self._waiting:
                await self._write_one(fence, take_run(self._waiting))
                continue
            self._changed.clear()
            try:
                async with asyncio.timeout(left_ns / NS_PER_S):
                    await self._changed.wait()
            except TimeoutError:
                return
            await asyncio.sleep(_LINGER_S)

    async def _write_one(self, fence: int, command: IndexCommand) -> None:
        ttl_s = self._options.entry_ttl_s
        is_there = True
        match command:
            case SetEpoch(holder, epoch):
                await self._index.set_epoch(fence, holder, epoch)
            case AddBlocks(holder, at, hashes):
                is_there = await self._index.add(fence, holder, at, hashes, ttl_s)
            case RemoveBlocks(holder, at, hashes):
                is_there = await self._index.remove(fence, holder, at, hashes, ttl_s)
            case ReplaceBlocks(holder, at, hashes):
                await self._index.replace(fence, holder, at, hashes, ttl_s)
            case DropHolder(holder):
                await self._index.drop_holder(fence, holder)
        if is_there:
            return
        # New to the index, or lost there: all of the holder, and what still waits after it.
        whole = self._fold.whole(command.holder)
        if whole is not None:
            await self._index.replace(fence, whole.holder, whole.at, whole.hashes, ttl_s)
