"""Folds what producers say of their KV blocks: into commands for the writer of the index, and into
the copy that a router reads.

Delivery is at least once and a producer may have to drop events, so the fold counts: an event
that is not newer is ignored, a hole in the numbers marks the producer stale until it has said,
in a complete chunked snapshot, all that it holds, or until the index knew of what was missed.
While stale its news is still taken, because the index is a hint. A new epoch forgets the old one;
nothing of an older epoch is used. A holder that is silent for a minute while others are heard is
dropped; when nobody is heard it is the bus that is silent, and the index just ages.

The fold keeps what each producer holds, so that a writer that comes to the lease, or finds the
index empty, can write all of it again (`everything`, `whole`). What it keeps is bounded: no
producer holds more than it says it can, and who has been dropped is forgotten after a while.
"""

from __future__ import annotations

from collections.abc import Sequence

from banyan_core.index_facts import (
    BlocksRemoved,
    BlocksSnapshot,
    BlocksStored,
    HolderAlive,
    HolderGone,
    HolderLoaded,
    IndexCommand,
    IndexFact,
    Position,
    ReplaceBlocks,
    SetEpoch,
)
from banyan_core.index_holder import MAX_BLOCKS, Holder, drop, take_event, take_loaded
from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_S, BlockHash

SILENCE_NS = 60 * NS_PER_S
QUIET_BUS_NS = 30 * NS_PER_S
"""In a healthy mesh the folding store alone speaks every 10 s: past this the bus was away."""
FORGET_NS = 600 * NS_PER_S
"""How long it is remembered which life of a dropped producer had ended."""


class IndexFold:
    """One producer's events never touch another's blocks. Hashes keep the order of their coming."""

    def __init__(self) -> None:
        self._producers: dict[str, Holder] = {}
        self._heard_at = 0

    def step(self, now: int, facts: Sequence[IndexFact]) -> Stepped[IndexCommand]:
        commands: list[IndexCommand] = []
        if any(not isinstance(fact, HolderLoaded) for fact in facts):
            self._hear(now)
        for fact in facts:
            producer = self._living(now, fact, commands)
            if producer is None:
                continue
            producer.heard_at = now
            match fact:
                case HolderGone():
                    producer.gone = True
                    drop(fact.producer, producer, commands)
                case BlocksStored() | BlocksRemoved() | BlocksSnapshot():
                    take_event(producer, fact, commands)
                case HolderLoaded():
                    take_loaded(producer, fact, commands)
                case HolderAlive():
                    producer.max_blocks = fact.num_blocks or MAX_BLOCKS
        self._drop_silent(commands)
        return Stepped(commands, None)

    def everything(self) -> tuple[ReplaceBlocks, ...]:
        """Commands that write the whole fold into an index of unknown content."""
        wholes = (self.whole(holder) for holder in sorted(self._producers))
        return tuple(whole for whole in wholes if whole is not None)

    def whole(self, holder: str) -> ReplaceBlocks | None:
        """The command that writes all of one holder; None when it is not to be in the index."""
        producer = self._producers.get(holder)
        if producer is None or producer.dropped:
            return None
        return ReplaceBlocks(holder, producer.at, tuple(producer.held))

    def stale(self) -> tuple[str, ...]:
        """Producers whose events have a hole that nothing has healed yet, by id."""
        return tuple(
            sorted(holder for holder, p in self._producers.items() if p.stale and not p.dropped)
        )

    def position(self, holder: str) -> Position | None:
        """How far the holder was heard, also of one whose life ended; None when never."""
        producer = self._producers.get(holder)
        return None if producer is None else producer.at

    def lacks(self, holder: str, at: Position) -> bool:
        """Whether what the index has at this position would go further, or close a hole, here."""
        producer = self._producers.get(holder)
        if producer is None or producer.epoch < at.epoch:
            return True
        if producer.epoch > at.epoch or producer.gone:
            return False
        return at.seq > producer.seq or producer.is_healed_by(at.seq, at.stale)

    def held(self, holder: str) -> tuple[BlockHash, ...]:
        """What the holder is believed to have now."""
        producer = self._producers.get(holder)
        return tuple(producer.held) if producer is not None else ()

    def prefixes(self, hashes: Sequence[BlockHash]) -> tuple[tuple[str, int], ...]:
        """Per holder that has the first of these, how many it has without a hole; by id."""
        found = []
        for holder, producer in self._producers.items():
            held, count = producer.held, 0
            for block in hashes:
                if block not in held:
                    break
                count += 1
            if count:
                found.append((holder, count))
        return tuple(sorted(found))

    def _living(self, now: int, fact: IndexFact, commands: list[IndexCommand]) -> Holder | None:
        """The producer in the fact's epoch, begun if it is new; None when the fact is too old."""
        producer = self._producers.get(fact.producer)
        if producer is None or fact.epoch > producer.epoch:
            producer = Holder(fact.epoch, now)
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
        forgotten = []
        for holder, producer in self._producers.items():
            silence = self._heard_at - producer.heard_at
            if not producer.dropped and silence >= SILENCE_NS:
                producer.silent = True
                drop(holder, producer, commands)
            elif silence >= FORGET_NS:
                forgotten.append(holder)
        for holder in forgotten:
            del self._producers[holder]
