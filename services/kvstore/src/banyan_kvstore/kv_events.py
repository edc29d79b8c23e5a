"""The store's ear and voice on the bus: events to facts of the fold, and its own events."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from banyan.v1 import events_pb2
from banyan_core.hashing import pack, unpack
from banyan_core.index_fold import (
    BlocksRemoved,
    BlocksSnapshot,
    BlocksStored,
    HolderAlive,
    HolderGone,
    IndexFact,
)
from banyan_core.types import BlockHash
from banyan_runtime.bus import KV_EVENTS, EventProducer

TIER = "store"
"""One name for both tiers: a block that moves between them is still held."""

CHUNK_BLOCKS = 1024


def fact_of(event: events_pb2.Event) -> IndexFact | None:
    """What the event means for the index; None when nothing. Raises ValueError when malformed."""
    who, epoch, seq = event.producer, event.epoch, event.seq
    match event.WhichOneof("payload"):
        case "blocks_stored":
            return BlocksStored(who, epoch, seq, unpack(event.blocks_stored.block_hashes))
        case "blocks_removed":
            return BlocksRemoved(who, epoch, seq, unpack(event.blocks_removed.block_hashes))
        case "blocks_snapshot":
            part = event.blocks_snapshot
            hashes = unpack(part.block_hashes)
            return BlocksSnapshot(who, epoch, seq, hashes, part.chunk, part.num_chunks)
        case "worker_alive":
            worker = event.worker_alive.worker
            return HolderAlive(worker.worker_id, worker.epoch)
        case "worker_gone":
            worker = event.worker_gone.worker
            return HolderGone(worker.worker_id, worker.epoch)
        case _:
            return None


def parse(value: bytes) -> events_pb2.Event:
    """Raises ValueError when these bytes are no event."""
    try:
        return events_pb2.Event.FromString(value)
    except DecodeError as error:
        raise ValueError(f"not an event: {error}") from None


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
