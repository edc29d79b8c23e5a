"""The store's voice on the bus: which blocks it holds."""

from __future__ import annotations

from collections.abc import Sequence

from banyan.v1 import events_pb2
from banyan_core.hashing import pack
from banyan_core.types import BlockHash
from banyan_runtime.bus import KV_EVENTS, EventProducer

TIER = "store"
"""One name for both tiers: a block that moves between them is still held."""

CHUNK_BLOCKS = 1024


class StoreEvents:
    """Says what this store holds."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    def changed(self, stored: Sequence[BlockHash], removed: Sequence[BlockHash]) -> None:
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
