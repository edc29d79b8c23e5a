"""The store's voice on the bus: which blocks it holds.

News is gathered for a moment: an event costs its producer, the bus and every listener the same
whether it tells of one block or of hundreds, and a full store has two for each block it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from banyan.v1 import events_pb2
from banyan_core.hashing import pack
from banyan_core.types import BlockHash
from banyan_kvstore.tiers import Change
from banyan_runtime.bus import KV_EVENTS, EventProducer

TIER = "store"
"""One name for both tiers: a block that moves between them is still held."""

CHUNK_BLOCKS = 1024
GATHER_S = 0.02


class StoreEvents:
    """Says what this store holds."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer
        self._news: dict[BlockHash, bool] = {}  # whether it is here, as of its last change
        self._any_news = asyncio.Event()

    def changed(self, change: Change) -> None:
        """To be said soon."""
        self._news.update(dict.fromkeys(change.stored, True))
        self._news.update(dict.fromkeys(change.removed, False))
        if self._news:
            self._any_news.set()

    async def tell(self) -> None:
        """Gathered news, for ever."""
        while True:
            await self._any_news.wait()
            await asyncio.sleep(GATHER_S)
            self.flush()

    def flush(self) -> None:
        """Say what was gathered."""
        news, self._news = self._news, {}
        self._any_news.clear()
        stored = [block_hash for block_hash, is_here in news.items() if is_here]
        removed = [block_hash for block_hash, is_here in news.items() if not is_here]
        if stored:
            payload = events_pb2.BlocksStored(block_hashes=pack(stored), tier=TIER)
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_stored=payload))
        if removed:
            gone = events_pb2.BlocksRemoved(block_hashes=pack(removed), tier=TIER)
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_removed=gone))

    def snapshot(self, hashes: Sequence[BlockHash]) -> None:
        """All that is held; one empty chunk when that is nothing."""
        chunks = [hashes[i : i + CHUNK_BLOCKS] for i in range(0, len(hashes), CHUNK_BLOCKS)] or [()]
        for number, chunk in enumerate(chunks):
            payload = events_pb2.BlocksSnapshot(
                block_hashes=pack(chunk), tier=TIER, chunk=number, num_chunks=len(chunks)
            )
            self._producer.emit(KV_EVENTS, events_pb2.Event(blocks_snapshot=payload))
