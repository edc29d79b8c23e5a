"""What events on the bus mean for who holds which block: for the index's writer and its copies."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from banyan.v1 import events_pb2
from banyan_core.hashing import unpack
from banyan_core.index_facts import (
    BlocksRemoved,
    BlocksSnapshot,
    BlocksStored,
    HolderAlive,
    HolderGone,
    IndexFact,
)


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
            alive = event.worker_alive
            return HolderAlive(alive.worker.worker_id, alive.worker.epoch, alive.num_blocks)
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
