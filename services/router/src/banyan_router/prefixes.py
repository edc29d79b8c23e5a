"""Who has a prompt's first blocks: from the router's own copy of the index, else from the index.

The copy begins with what the index has and goes on with what the producers say on the bus; the
same fold as the index's writer uses keeps it. Which comes first does not matter: what is loaded
says how far it goes, and events are numbered, so the overlap does no harm and a hole is seen. Every
two seconds the copy is held against the positions of the index: what is unknown here, has a hole
here, or is still behind what the index had a round ago, is loaded. So a router without the bus has
a copy that is seconds old, and one without the index a copy that the bus keeps.

While the copy is not all there, or has a hole, each question goes to the index, for at most 50 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from banyan_core.index_facts import HolderLoaded, IndexFact, Position
from banyan_core.index_fold import IndexFold
from banyan_core.policies.routing_view import Holdings
from banyan_core.types import BlockHash
from banyan_router.metrics import RouterMetrics
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS, Bus, Since
from banyan_runtime.clock import Clock
from banyan_runtime.kv_facts import fact_of, parse
from banyan_runtime.kv_index import IndexUnavailable, KvIndex
from banyan_runtime.lifespan import Tasks

LOOKUP_TIMEOUT_S = 0.05
ROUND_S = 2.0


class Prefixes:
    """`find` answers; the rest keeps the copy."""

    def __init__(
        self,
        bus: Bus,
        index: KvIndex,
        clock: Clock,
        metrics: RouterMetrics,
        logger: logging.Logger,
    ) -> None:
        self._bus = bus
        self._index = index
        self._clock = clock
        self._metrics = metrics
        self._logger = logger
        self._fold = IndexFold()
        self._is_whole = False  # all that the index had is here
        self._has_hole = False

    def start(self, tasks: Tasks) -> None:
        tasks.spawn("prefixes ear", self._listen())
        tasks.spawn("prefixes from the index", self._follow_index())

    async def find(self, hashes: Sequence[BlockHash]) -> Holdings:
        """The index is a hint: a late answer is no answer."""
        if not hashes:
            return Holdings()
        if self._is_whole and not self._has_hole:
            self._metrics.copy_lookups.inc()
            return Holdings(self._fold.prefixes(hashes))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await self._index.lookup(hashes)
        except (IndexUnavailable, TimeoutError):
            self._metrics.index_misses.inc()
            own = self._fold.prefixes(hashes)
            return Holdings(own, known=bool(own))
        self._metrics.index_lookups.inc()
        return Holdings(tuple(sorted(found.items())))

    # ------------------------------------------------------------ the copy

    async def _listen(self) -> None:
        async for record in self._bus.subscribe((KV_EVENTS, WORKER_EVENTS), Since.TAIL):
            try:
                fact = fact_of(parse(record.value))
            except ValueError as error:
                why = {"topic": record.topic, "cursor": record.cursor, "why": str(error)}
                self._logger.warning("event dropped", extra=why)
                continue
            if fact is not None:
                self._take(fact)

    def _take(self, fact: IndexFact) -> None:
        self._fold.step(self._clock.now_ns(), (fact,))
        self._has_hole = bool(self._fold.stale())

    async def _follow_index(self) -> None:
        """Compare and load, for ever."""
        before: Mapping[str, Position] = {}
        while True:
            try:
                positions = await self._index.positions()
                was_whole, self._is_whole = self._is_whole, await self._load(positions, before)
                if self._is_whole and not was_whole:
                    extra = {"num_holders": len(positions)}
                    self._logger.info("the copy of the index is whole", extra=extra)
                before = positions
            except IndexUnavailable as error:
                self._logger.debug("the index was not compared", extra={"why": str(error)})
            await asyncio.sleep(ROUND_S)

    async def _load(
        self, positions: Mapping[str, Position], before: Mapping[str, Position]
    ) -> bool:
        """Load what the copy lacks. Whether that was nothing that it should have had."""
        is_whole = True
        for holder, at in positions.items():
            own = self._fold.position(holder)
            is_followed = own is not None and own.epoch == at.epoch and not own.stale
            # Of a holder that is followed, what is new in the index is on its way here, too.
            if not self._fold.lacks(holder, before.get(holder, at) if is_followed else at):
                continue
            loaded = await self._index.load(holder)
            if loaded is None:
                is_whole = False  # being replaced, or just gone: the next round will tell
                continue
            is_whole = is_whole and not is_followed
            at, hashes = loaded.at, loaded.hashes
            self._take(HolderLoaded(holder, at.epoch, at.seq, at.stale, hashes))
        return is_whole
