"""What is said of who holds which KV blocks, and what is to be written of it.

A position says how much of a holder's story a set of blocks contains. Every event of a story can
be told again without harm, so blocks and a position that is not newer than they are, followed by
all events after the position, give what the holder has: that is how a copy is begun from the
index and goes on from the bus.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.types import BlockHash

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """The producer now holds these; seq counts its kv events from 1 within an epoch."""

    producer: str
    epoch: int
    seq: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """The producer no longer holds these."""

    producer: str
    epoch: int
    seq: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class BlocksSnapshot:
    """Part `chunk` of `num_chunks` of all that the producer held when chunk 0 was sent."""

    producer: str
    epoch: int
    seq: int
    hashes: tuple[BlockHash, ...]
    chunk: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class HolderLoaded:
    """What the index has of the holder: at least its story up to `seq`, maybe some of the rest."""

    producer: str
    epoch: int
    seq: int
    stale: bool
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class HolderAlive:
    """The producer lives in this epoch. `num_blocks` is all that it can hold, 0 if not said."""

    producer: str
    epoch: int
    num_blocks: int = 0


@dataclass(frozen=True, slots=True)
class HolderGone:
    """This life of the producer is over: nothing of it is to be used again."""

    producer: str
    epoch: int


BlockNews = BlocksStored | BlocksRemoved
KvEvent = BlockNews | BlocksSnapshot
IndexFact = KvEvent | HolderLoaded | HolderAlive | HolderGone

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Position:
    """How far a holder's story is contained. `stale`: parts of it before that were missed."""

    epoch: int
    seq: int
    stale: bool = False


@dataclass(frozen=True, slots=True)
class AddBlocks:
    holder: str
    at: Position
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class RemoveBlocks:
    holder: str
    at: Position
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class SetEpoch:
    """A new life of the holder: what it had before is no longer there."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ReplaceBlocks:
    """Exactly these and nothing else: what the index had of the holder may be wrong."""

    holder: str
    at: Position
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class DropHolder:
    holder: str


IndexCommand = AddBlocks | RemoveBlocks | SetEpoch | ReplaceBlocks | DropHolder
