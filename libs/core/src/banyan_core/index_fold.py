"""Folds what producers say of their KV blocks into commands for the writer of the index.

Delivery is at least once and a producer may have to drop events, so the fold counts: an event
that is not newer is ignored, a hole in the numbers marks the producer stale until it has said,
in a complete chunked snapshot, all that it holds. While stale its news is still taken, because
the index is a hint. A new epoch forgets the old one; nothing of an older epoch is used. A holder
that is silent for a minute while others are heard is dropped; when nobody is heard it is the bus
that is silent, and the index just ages.

The fold keeps what each producer holds, so that a writer that comes to the lease, or finds the
index empty, can write all of it again (`everything`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_S, BlockHash

SILENCE_NS = 60 * NS_PER_S
QUIET_BUS_NS = 30 * NS_PER_S
"""In a healthy mesh the folding store alone speaks every 10 s: past this the bus was away."""
MAX_DELTAS = 10_000
"""Changes kept while a snapshot's chunks come in; past it the snapshot is given up."""

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
class HolderAlive:
    """The producer lives in this epoch."""

    producer: str
    epoch: int


@dataclass(frozen=True, slots=True)
class HolderGone:
    """This life of the producer is over: nothing of it is to be used again."""

    producer: str
    epoch: int


KvEvent = BlocksStored | BlocksRemoved | BlocksSnapshot
IndexFact = KvEvent | HolderAlive | HolderGone

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class AddBlocks:
    holder: str
    epoch: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class RemoveBlocks:
    holder: str
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
    epoch: int
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class DropHolder:
    holder: str


IndexCommand = AddBlocks | RemoveBlocks | SetEpoch | ReplaceBlocks | DropHolder

# ---------------------------------------------------------------- the machine


@dataclass(slots=True)
class _Snapshot:
    """Chunks so far, and what changed since the first of them."""

    num_chunks: int
    next_chunk: int = 0
    hashes: dict[BlockHash, None] = field(default_factory=dict)
    deltas: list[BlocksStored | BlocksRemoved] = field(default_factory=list)


@dataclass(slots=True)
class _Producer:
    epoch: int
    heard_at: int
    seq: int = 0
    stale: bool = False
    gone: bool = False  # this epoch said that it ended
    silent: bool = False  # not heard for too long; it may come back
    held: dict[BlockHash, None] = field(default_factory=dict)
    snapshot: _Snapshot | None = None

    @property
    def dropped(self) -> bool:
        return self.gone or self.silent


class IndexFold:
    """One producer's events never touch another's blocks. Hashes keep the order of their coming."""

    def __init__(self) -> None:
        self._producers: dict[str, _Producer] = {}
        self._heard_at = 0

    def step(self, now: int, facts: Sequence[IndexFact]) -> Stepped[IndexCommand]:
        commands: list[IndexCommand] = []
        if facts:
            self._hear(now)
        for fact in facts:
            producer = self._living(now, fact, commands)
            if producer is None:
                continue
            producer.heard_at = now
            match fact:
                case HolderGone():
                    producer.gone = True
                    _drop(fact.producer, producer, commands)
                case BlocksStored() | BlocksRemoved() | BlocksSnapshot():
                    _event(producer, fact, commands)
                case HolderAlive():
                    pass  # being heard is all it says
        self._drop_silent(commands)
        return Stepped(commands, None)

    def everything(self) -> tuple[IndexCommand, ...]:
        """Commands that write the whole fold into an index of unknown content."""
        return tuple(
            ReplaceBlocks(holder, producer.epoch, tuple(producer.held))
            for holder, producer in sorted(self._producers.items())
            if not producer.dropped
        )

    def stale(self) -> tuple[str, ...]:
        """Producers whose events have a hole that no snapshot has healed yet, by id."""
        return tuple(
            sorted(holder for holder, p in self._producers.items() if p.stale and not p.dropped)
        )

    def held(self, holder: str) -> tuple[BlockHash, ...]:
        """What the holder is believed to have now."""
        producer = self._producers.get(holder)
        return tuple(producer.held) if producer is not None else ()

    def _living(self, now: int, fact: IndexFact, commands: list[IndexCommand]) -> _Producer | None:
        """The producer in the fact's epoch, begun if it is new; None when the fact is too old."""
        producer = self._producers.get(fact.producer)
        if producer is None or fact.epoch > producer.epoch:
            producer = _Producer(fact.epoch, now)
            self._producers[fact.producer] = producer
            commands.append(SetEpoch(fact.producer, fact.epoch))
            return producer
        if fact.epoch < producer.epoch or producer.gone:
            return None
        if producer.silent:
            producer.silent = False
            commands.append(SetEpoch(fact.producer, fact.epoch))
        return producer

    def _hear(self, now: int) -> None:
        """Take note of news. After a silence of all, nobody's own silence counts."""
        quiet = now - self._heard_at
        if quiet > QUIET_BUS_NS:
            for producer in self._producers.values():
                producer.heard_at += quiet
        self._heard_at = now

    def _drop_silent(self, commands: list[IndexCommand]) -> None:
        for holder, producer in self._producers.items():
            if not producer.dropped and self._heard_at - producer.heard_at >= SILENCE_NS:
                producer.silent = True
                _drop(holder, producer, commands)


def _drop(holder: str, producer: _Producer, commands: list[IndexCommand]) -> None:
    producer.held = {}
    producer.snapshot = None
    producer.stale = True
    commands.append(DropHolder(holder))


def _event(producer: _Producer, fact: KvEvent, commands: list[IndexCommand]) -> None:
    if fact.seq <= producer.seq:
        return
    if fact.seq != producer.seq + 1:
        producer.stale = True
        producer.snapshot = None
    producer.seq = fact.seq
    if isinstance(fact, BlocksSnapshot):
        _chunk(producer, fact, commands)
        return
    if producer.snapshot is not None:
        producer.snapshot.deltas.append(fact)
        if len(producer.snapshot.deltas) > MAX_DELTAS:
            producer.snapshot = None
    _apply(producer.held, fact)
    if isinstance(fact, BlocksStored):
        commands.append(AddBlocks(fact.producer, fact.epoch, fact.hashes))
    else:
        commands.append(RemoveBlocks(fact.producer, fact.hashes))


def _chunk(producer: _Producer, fact: BlocksSnapshot, commands: list[IndexCommand]) -> None:
    if fact.chunk == 0:
        producer.snapshot = _Snapshot(fact.num_chunks)
    snapshot = producer.snapshot
    if snapshot is None or (fact.chunk, fact.num_chunks) != (
        snapshot.next_chunk,
        snapshot.num_chunks,
    ):
        producer.snapshot = None
        return
    snapshot.next_chunk += 1
    snapshot.hashes.update(dict.fromkeys(fact.hashes))
    if snapshot.next_chunk < snapshot.num_chunks:
        return
    producer.snapshot = None
    held = snapshot.hashes
    for delta in snapshot.deltas:
        _apply(held, delta)
    # One command that says all: a healthy producer's snapshot also refreshes what an index
    # forgot, and only a stale one's needs the holder emptied first.
    if producer.stale:
        commands.append(ReplaceBlocks(fact.producer, fact.epoch, tuple(held)))
    else:
        lost = tuple(block for block in producer.held if block not in held)
        if lost:
            commands.append(RemoveBlocks(fact.producer, lost))
        commands.append(AddBlocks(fact.producer, fact.epoch, tuple(held)))
    producer.held = held
    producer.stale = False


def _apply(held: dict[BlockHash, None], fact: BlocksStored | BlocksRemoved) -> None:
    if isinstance(fact, BlocksStored):
        held.update(dict.fromkeys(fact.hashes))
        return
    for block in fact.hashes:
        held.pop(block, None)
