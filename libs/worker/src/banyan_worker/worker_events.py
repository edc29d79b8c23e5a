"""What a worker says on the bus: that it is alive, and which KV blocks it has.

News of blocks is gathered for a moment, because one engine step fills many; a block that came
and went within it is not mentioned. A record that the bus dropped leaves a gap, and whoever sees
it waits for the next snapshot, which therefore follows soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from banyan.v1 import events_pb2
from banyan_core.events import WorkerAlive, WorkerGone
from banyan_core.hashing import pack
from banyan_core.types import NS_PER_S, BlockHash, ModelCard, WorkerLoad, WorkerRef
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS, EventProducer
from banyan_runtime.clock import Clock
from banyan_runtime.event_codec import payload_to_pb
from banyan_worker.load_board import LoadBoard
from banyan_worker.options import WorkerOptions

TIER = "worker"
_CHUNK_BLOCKS = 1024
_ALIVE_INTERVAL_S = 0.25
_GAP_SNAPSHOT_S = 1.0


class WorkerEvents:
    """`hashes` gives every block that is here, for snapshots."""

    def __init__(
        self,
        ref: WorkerRef,
        card: ModelCard,
        num_blocks: int,
        producer: EventProducer,
        clock: Clock,
        options: WorkerOptions,
        hashes: Callable[[], Sequence[BlockHash]],
    ) -> None:
        self._ref = ref
        self._card = card
        self._num_blocks = num_blocks
        self._producer = producer
        self._clock = clock
        self._options = options
        self._hashes = hashes
        self._news: dict[BlockHash, bool] = {}

    @property
    def num_dropped(self) -> int:
        return self._producer.num_dropped

    def blocks_filled(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            self._note(block_hash, here=True)

    def blocks_evicted(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            self._note(block_hash, here=False)

    def _note(self, block_hash: BlockHash, here: bool) -> None:
        before = self._news.pop(block_hash, None)
        if before is None or before is here:
            self._news[block_hash] = here

    async def tell_blocks(self) -> None:
        """Gathered news, and a snapshot now and then, for ever."""
        snapshot_ns = self._clock.now_ns()
        num_dropped = 0
        while True:
            now = self._clock.now_ns()
            if self._producer.num_dropped > num_dropped:
                num_dropped = self._producer.num_dropped
                snapshot_ns = min(snapshot_ns, now + round(_GAP_SNAPSHOT_S * NS_PER_S))
            self.flush()
            if now >= snapshot_ns:
                self._snapshot()
                snapshot_ns = now + round(self._options.snapshot_interval_s * NS_PER_S)
            await asyncio.sleep(self._options.events_interval_s)

    def flush(self) -> None:
        """Say what was gathered."""
        news, self._news = self._news, {}
        stored = [block_hash for block_hash, here in news.items() if here]
        removed = [block_hash for block_hash, here in news.items() if not here]
        if removed:
            gone = events_pb2.BlocksRemoved(block_hashes=pack(removed), tier=TIER)
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_removed=gone))
        if stored:
            here_now = events_pb2.BlocksStored(block_hashes=pack(stored), tier=TIER)
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_stored=here_now))

    def _snapshot(self) -> None:
        hashes = self._hashes()
        starts = range(0, max(1, len(hashes)), _CHUNK_BLOCKS)
        for number, start in enumerate(starts):
            payload = events_pb2.BlocksSnapshot(
                block_hashes=pack(hashes[start : start + _CHUNK_BLOCKS]),
                tier=TIER,
                chunk=number,
                num_chunks=len(starts),
            )
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_snapshot=payload))

    async def tell_alive(self, board: LoadBoard, load: Callable[[], WorkerLoad]) -> None:
        """At each change of load, at most four times and at least once a second, for ever."""
        while True:
            seen = board.version
            alive = WorkerAlive(
                self._ref, self._card.name, self._num_blocks, load(), self._options.alive_lease_ns
            )
            self._producer.emit(WORKER_EVENTS, payload_to_pb(alive))
            await board.next_turn(seen, _ALIVE_INTERVAL_S)

    def gone(self, reason: str) -> None:
        self._producer.emit(WORKER_EVENTS, payload_to_pb(WorkerGone(self._ref, reason)))
