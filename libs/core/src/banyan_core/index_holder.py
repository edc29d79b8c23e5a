"""What one holder is believed to have: its place in its story, holes in it, and how they heal."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from banyan_core.index_facts import (
    AddBlocks,
    BlockNews,
    BlocksSnapshot,
    BlocksStored,
    DropHolder,
    HolderLoaded,
    IndexCommand,
    KvEvent,
    Position,
    RemoveBlocks,
    ReplaceBlocks,
)
from banyan_core.types import BlockHash

MAX_DELTAS = 10_000
"""Events kept until a snapshot or the index has what was missed; past it the wait starts anew."""
MAX_BLOCKS = 1 << 20
"""Of one producer that does not say how many it can hold."""


@dataclass(slots=True)
class _Snapshot:
    """Chunks so far of what was held at `seq`."""

    seq: int
    num_chunks: int
    next_chunk: int = 0
    hashes: dict[BlockHash, None] = field(default_factory=dict)

    def add(self, part: BlocksSnapshot, max_blocks: int) -> bool:
        """False: it is not the next chunk, or more than the producer can hold."""
        if (part.chunk, part.num_chunks) != (self.next_chunk, self.num_chunks):
            return False
        self.next_chunk += 1
        self.hashes.update(dict.fromkeys(part.hashes))
        return len(self.hashes) <= max_blocks


@dataclass(slots=True)
class Holder:
    """One life of a producer, as far as it was heard."""

    epoch: int
    heard_at: int
    seq: int = 0
    stale: bool = False
    whole_from: int = 0  # no event after this one was missed; what was before it heals the holder
    gone: bool = False  # this epoch said that it ended
    silent: bool = False  # not heard for too long; it may come back
    max_blocks: int = MAX_BLOCKS
    held: dict[BlockHash, None] = field(default_factory=dict)
    snapshot: _Snapshot | None = None
    deltas: list[BlockNews] = field(default_factory=list)  # while stale or amid a snapshot

    @property
    def dropped(self) -> bool:
        return self.gone or self.silent

    @property
    def at(self) -> Position:
        return Position(self.epoch, self.seq, self.stale)

    def is_healed_by(self, seq: int, stale: bool) -> bool:
        return self.stale and not stale and seq >= self.whole_from

    def miss(self, seq: int) -> None:
        """Something before or at `seq` was missed, or is no longer here."""
        self.stale = True
        self.whole_from = seq
        self.snapshot = None
        self.deltas.clear()

    def become(self, held: dict[BlockHash, None], seq: int) -> None:
        """Take for true what was held at `seq`, and what happened since."""
        for delta in self.deltas:
            if delta.seq > seq:
                _apply(held, delta)
        self.held = held
        self.stale = False
        self.snapshot = None
        self.deltas.clear()


def drop(holder: str, producer: Holder, commands: list[IndexCommand]) -> None:
    producer.held = {}
    producer.miss(producer.seq)
    commands.append(DropHolder(holder))


def take_event(producer: Holder, fact: KvEvent, commands: list[IndexCommand]) -> None:
    if fact.seq <= producer.seq:
        return
    if fact.seq != producer.seq + 1:
        producer.miss(fact.seq - 1)
    producer.seq = fact.seq
    if isinstance(fact, BlocksSnapshot):
        _chunk(producer, fact, commands)
        return
    if producer.stale or producer.snapshot is not None:
        producer.deltas.append(fact)
        if len(producer.deltas) > MAX_DELTAS:
            _give_up_waiting(producer)
    _apply(producer.held, fact)
    if isinstance(fact, BlocksStored):
        commands.append(AddBlocks(fact.producer, producer.at, fact.hashes))
        _bound(fact.producer, producer, commands)
    else:
        commands.append(RemoveBlocks(fact.producer, producer.at, fact.hashes))


def _give_up_waiting(producer: Holder) -> None:
    """Too much has happened since: only what contains it, too, can heal the producer now."""
    producer.snapshot = None
    producer.deltas.clear()
    producer.whole_from = producer.seq


def _chunk(producer: Holder, fact: BlocksSnapshot, commands: list[IndexCommand]) -> None:
    if fact.chunk == 0:
        producer.snapshot = _Snapshot(fact.seq, fact.num_chunks)
        if not producer.stale:
            producer.deltas.clear()
    snapshot = producer.snapshot
    if snapshot is None or not snapshot.add(fact, producer.max_blocks):
        producer.snapshot = None
        return
    if snapshot.next_chunk < snapshot.num_chunks:
        return
    before, was_stale = producer.held, producer.stale
    producer.become(snapshot.hashes, snapshot.seq)
    held = tuple(producer.held)
    # One command that says all: a healthy producer's snapshot also refreshes what an index
    # forgot, and only a stale one's needs the holder emptied first.
    if was_stale:
        commands.append(ReplaceBlocks(fact.producer, producer.at, held))
        return
    lost = tuple(block for block in before if block not in producer.held)
    if lost:
        commands.append(RemoveBlocks(fact.producer, producer.at, lost))
    commands.append(AddBlocks(fact.producer, producer.at, held))


def take_loaded(producer: Holder, fact: HolderLoaded, commands: list[IndexCommand]) -> None:
    """What the index knew is taken when it goes further, or closes the hole that is here."""
    if fact.seq <= producer.seq and not producer.is_healed_by(fact.seq, fact.stale):
        return
    producer.become(dict.fromkeys(fact.hashes), fact.seq)
    producer.seq = max(producer.seq, fact.seq)
    if fact.stale:
        producer.miss(fact.seq)
    commands.append(ReplaceBlocks(fact.producer, producer.at, tuple(producer.held)))


def _bound(holder: str, producer: Holder, commands: list[IndexCommand]) -> None:
    """Who seems to hold more than it can has removed blocks without being heard: the oldest."""
    excess = len(producer.held) - producer.max_blocks
    if excess <= 0:
        return
    oldest = tuple(islice(producer.held, excess))
    for block in oldest:
        del producer.held[block]
    commands.append(RemoveBlocks(holder, producer.at, oldest))


def _apply(held: dict[BlockHash, None], fact: BlockNews) -> None:
    if isinstance(fact, BlocksStored):
        held.update(dict.fromkeys(fact.hashes))
        return
    for block in fact.hashes:
        held.pop(block, None)
