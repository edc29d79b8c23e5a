"""What routers and the bus are told of this worker's load.

A watch says the card first, then the load at each change, at most every 50 ms, and at least
every second. Each watch has its own list of what was admitted since its last report, so that
every router can drop exactly its own guesses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from banyan.v1 import worker_pb2
from banyan_core.types import ModelCard, WorkerLoad, WorkerRef
from banyan_runtime import codec
from banyan_worker.changes import Changes
from banyan_worker.options import WorkerOptions

_MAX_ADMITTED = 10_000


class LoadBoard:
    """`load` is asked for the present load whenever one is sent."""

    def __init__(
        self,
        ref: WorkerRef,
        card: ModelCard,
        num_blocks: int,
        options: WorkerOptions,
        load: Callable[[], WorkerLoad],
    ) -> None:
        self._ref = ref
        self._card = card
        self._num_blocks = num_blocks
        self._options = options
        self._load = load
        self._changes = Changes()
        self._watches: dict[int, deque[str]] = {}
        self._num_watches = 0

    def changed(self) -> None:
        self._changes.notify()

    def admitted(self, sequence_id: str) -> None:
        for admitted in self._watches.values():
            admitted.append(sequence_id)
        self._changes.notify()

    async def next_turn(self, seen: int, interval_s: float) -> None:
        """Return at the next change after version `seen`, no sooner than `interval_s` from now
        and no later than the heartbeat."""
        await asyncio.sleep(interval_s)
        await self._changes.wait(self._options.heartbeat_s - interval_s, seen)

    @property
    def version(self) -> int:
        return self._changes.version

    async def watch(
        self, running_ids: tuple[str, ...]
    ) -> AsyncGenerator[worker_pb2.WorkerReport, None]:
        """Reports until closed. `running_ids` are admitted already: the first report has them."""
        self._num_watches += 1
        number = self._num_watches
        admitted = self._watches[number] = deque(running_ids, maxlen=_MAX_ADMITTED)
        try:
            report = self._report(admitted)
            report.card.CopyFrom(codec.model_card_to_pb(self._card))
            report.num_blocks = self._num_blocks
            while True:
                seen = self.version
                yield report
                await self.next_turn(seen, self._options.watch_interval_s)
                report = self._report(admitted)
        finally:
            del self._watches[number]

    def _report(self, admitted: deque[str]) -> worker_pb2.WorkerReport:
        load = replace(self._load(), admitted=tuple(admitted))
        admitted.clear()
        return worker_pb2.WorkerReport(
            worker=codec.worker_ref_to_pb(self._ref), load=codec.worker_load_to_pb(load)
        )
