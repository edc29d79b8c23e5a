"""Producers that know the truth, a channel that loses, doubles and delays, and what is folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from tests.core.clusters import hashes

from banyan_core.index_facts import (
    AddBlocks,
    BlocksRemoved,
    BlocksSnapshot,
    BlocksStored,
    DropHolder,
    IndexCommand,
    IndexFact,
    KvEvent,
    Position,
    RemoveBlocks,
    ReplaceBlocks,
    SetEpoch,
)
from banyan_core.index_fold import IndexFold
from banyan_core.types import BlockHash

H = hashes(12)


class ModelIndex:
    """What an index holds after the commands, without any cleverness."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, set[BlockHash]]] = {}
        self.at: dict[str, Position] = {}

    def apply(self, commands: Sequence[IndexCommand]) -> None:
        for command in commands:
            match command:
                case SetEpoch(holder, epoch):
                    known = self.held.get(holder)
                    if known is None or known[0] < epoch:
                        self.held[holder] = (epoch, set())
                case AddBlocks(holder, at, added):
                    assert self.held[holder][0] == at.epoch
                    self.held[holder][1].update(added)
                    self.at[holder] = at
                case RemoveBlocks(holder, at, removed):
                    self.held[holder][1].difference_update(removed)
                    self.at[holder] = at
                case ReplaceBlocks(holder, at, exact):
                    self.held[holder] = (at.epoch, set(exact))
                    self.at[holder] = at
                case DropHolder(holder):
                    self.held.pop(holder, None)

    def of(self, holder: str) -> set[BlockHash]:
        return self.held.get(holder, (0, set()))[1]


@dataclass
class Producer:
    """Holds blocks, says so, and remembers what it held when it said what."""

    name: str
    epoch: int = 1
    seq: int = 0
    held: dict[BlockHash, None] = field(default_factory=dict)
    truth: dict[tuple[int, int], set[BlockHash]] = field(default_factory=dict)

    def _said(self, event: KvEvent) -> KvEvent:
        self.truth[(self.epoch, self.seq)] = set(self.held)
        return event

    def store(self, block: BlockHash) -> KvEvent:
        self.held[block] = None
        self.seq += 1
        return self._said(BlocksStored(self.name, self.epoch, self.seq, (block,)))

    def remove(self, block: BlockHash) -> KvEvent:
        self.held.pop(block, None)
        self.seq += 1
        return self._said(BlocksRemoved(self.name, self.epoch, self.seq, (block,)))

    def chunk(self, content: Sequence[BlockHash], number: int, num_chunks: int) -> KvEvent:
        self.seq += 1
        part = tuple(content[number::num_chunks])
        event = BlocksSnapshot(self.name, self.epoch, self.seq, part, number, num_chunks)
        return self._said(event)

    def snapshot(self, num_chunks: int = 2) -> list[KvEvent]:
        content = tuple(self.held)
        return [self.chunk(content, number, num_chunks) for number in range(num_chunks)]

    def restart(self) -> None:
        self.epoch, self.seq, self.held = self.epoch + 1, 0, {}


class Folded:
    """A fold and the index its commands make."""

    def __init__(self) -> None:
        self.fold = IndexFold()
        self.index = ModelIndex()
        self.now = 0

    def take(self, *facts: IndexFact, after_ns: int = 0) -> Sequence[IndexCommand]:
        self.now += after_ns
        stepped = self.fold.step(self.now, facts)
        assert stepped.next_wake is None
        self.index.apply(stepped.commands)
        return stepped.commands


ACTIONS = st.sampled_from(["store", "store", "remove", "chunk", "restart"])
FATES = st.sampled_from(["deliver", "deliver", "deliver", "lose", "twice", "late"])
STEPS = st.lists(
    st.tuples(st.integers(0, 1), ACTIONS, st.integers(0, len(H) - 1), FATES), max_size=120
)


class Channel:
    """Loses, doubles and delays; remembers how far each producer was heard."""

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self._late: list[KvEvent] = []
        self.heard: dict[str, tuple[int, int]] = {}

    def send(self, event: KvEvent, fate: str) -> None:
        if fate == "lose":
            return
        if fate == "late":
            self._late.append(event)
            return
        self._deliver(event)
        if fate == "twice":
            self._deliver(event)
        if len(self._late) > 3:
            self._deliver(self._late.pop(0))

    def _deliver(self, event: KvEvent) -> None:
        last = self.heard.get(event.producer, (0, 0))
        self.heard[event.producer] = max(last, (event.epoch, event.seq))
        self._folded.take(event)


class Speaker:
    """Turns drawn actions into events; its snapshots are spread over other news."""

    def __init__(self, name: str) -> None:
        self.producer = Producer(name)
        self._content: tuple[BlockHash, ...] = ()
        self._next_chunk = 0

    def act(self, action: str, place: int) -> KvEvent | None:
        producer = self.producer
        if action == "store":
            return producer.store(H[place])
        if action == "remove":
            return producer.remove(H[place])
        if action == "restart":
            producer.restart()
            self._next_chunk = 0
            return None
        if self._next_chunk == 0:
            self._content = tuple(producer.held)
        event = producer.chunk(self._content, self._next_chunk, 2)
        self._next_chunk = (self._next_chunk + 1) % 2
        return event
