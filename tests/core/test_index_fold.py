"""The fold of kv events against a producer that knows the truth, over a channel that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.clusters import hashes

from banyan_core.index_fold import (
    QUIET_BUS_NS,
    SILENCE_NS,
    AddBlocks,
    BlocksRemoved,
    BlocksSnapshot,
    BlocksStored,
    DropHolder,
    HolderAlive,
    HolderGone,
    IndexCommand,
    IndexFact,
    IndexFold,
    KvEvent,
    RemoveBlocks,
    ReplaceBlocks,
    SetEpoch,
)
from banyan_core.types import NS_PER_S, BlockHash

H = hashes(12)


class ModelIndex:
    """What an index holds after the commands, without any cleverness."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, set[BlockHash]]] = {}

    def apply(self, commands: Sequence[IndexCommand]) -> None:
        for command in commands:
            match command:
                case SetEpoch(holder, epoch):
                    known = self.held.get(holder)
                    if known is None or known[0] < epoch:
                        self.held[holder] = (epoch, set())
                case AddBlocks(holder, epoch, added):
                    assert self.held[holder][0] == epoch
                    self.held[holder][1].update(added)
                case RemoveBlocks(holder, removed):
                    self.held[holder][1].difference_update(removed)
                case ReplaceBlocks(holder, epoch, exact):
                    self.held[holder] = (epoch, set(exact))
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


# ---------------------------------------------------------------- one thing at a time


def test_stored_and_removed_blocks_reach_the_index() -> None:
    folded, w = Folded(), Producer("w")
    commands = folded.take(w.store(H[0]), w.store(H[1]), w.remove(H[0]))
    assert commands == [
        SetEpoch("w", 1),
        AddBlocks("w", 1, (H[0],)),
        AddBlocks("w", 1, (H[1],)),
        RemoveBlocks("w", (H[0],)),
    ]
    assert folded.fold.stale() == ()


def test_a_duplicate_changes_nothing() -> None:
    folded, w = Folded(), Producer("w")
    stored, removed = w.store(H[0]), w.remove(H[0])
    folded.take(stored, removed)
    assert folded.take(stored, removed) == []


def test_a_gap_is_stale_until_a_whole_snapshot() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]))
    w.remove(H[0])  # lost
    folded.take(w.store(H[1]))
    assert folded.fold.stale() == ("w",)
    first, last = w.snapshot()
    folded.take(first)
    assert folded.fold.stale() == ("w",)
    assert folded.take(last) == [ReplaceBlocks("w", 1, (H[1],))]
    assert folded.fold.stale() == ()


def test_a_snapshot_with_a_lost_chunk_heals_nothing() -> None:
    folded, w = Folded(), Producer("w")
    w.store(H[0])  # lost
    first, _, last = w.snapshot(3)
    folded.take(first, last)
    assert folded.fold.stale() == ("w",)
    assert folded.fold.held("w") == ()


def test_what_happens_between_chunks_counts_after_them() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]), w.store(H[1]))
    content = tuple(w.held)
    folded.take(w.chunk(content, 0, 2), w.remove(H[1]), w.store(H[2]), w.chunk(content, 1, 2))
    assert set(folded.fold.held("w")) == {H[0], H[2]} == folded.index.of("w")


def test_news_lost_between_chunks_spoils_the_snapshot() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]), w.store(H[1]))
    content = tuple(w.held)
    folded.take(w.chunk(content, 0, 2))
    w.remove(H[1])  # lost
    folded.take(w.chunk(content, 1, 2))
    assert folded.fold.stale() == ("w",)
    folded.take(*w.snapshot())
    assert folded.index.of("w") == {H[0]}


def test_a_healthy_snapshot_writes_all_again_without_a_hole() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]))
    assert folded.take(*w.snapshot(1)) == [AddBlocks("w", 1, (H[0],))]


def test_an_empty_snapshot_empties() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]))
    w.remove(H[0])  # lost
    folded.take(*w.snapshot(1))
    assert folded.index.of("w") == set()


def test_a_new_epoch_forgets_and_an_old_one_is_ignored() -> None:
    folded, w = Folded(), Producer("w")
    old = w.store(H[0])
    folded.take(old)
    late = w.store(H[1])
    w.restart()
    assert folded.take(w.store(H[2]), late) == [SetEpoch("w", 2), AddBlocks("w", 2, (H[2],))]
    assert folded.index.of("w") == {H[2]}


def test_a_producer_first_heard_in_the_middle_is_stale() -> None:
    folded, w = Folded(), Producer("w")
    w.store(H[0])  # before the bus remembers
    folded.take(w.store(H[1]))
    assert folded.fold.stale() == ("w",)
    assert folded.index.of("w") == {H[1]}


def test_who_left_is_dropped_and_its_late_events_are_not_used() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]))
    assert folded.take(HolderGone("w", 1)) == [DropHolder("w")]
    assert folded.take(w.store(H[1]), HolderAlive("w", 1)) == []
    assert folded.fold.everything() == ()
    w.restart()
    folded.take(w.store(H[2]))
    assert folded.index.of("w") == {H[2]}


def test_the_end_of_an_older_life_ends_nothing() -> None:
    folded, w = Folded(), Producer("w", epoch=2)
    folded.take(w.store(H[0]))
    assert folded.take(HolderGone("w", 1)) == []


def test_the_silent_one_is_dropped_while_others_speak() -> None:
    folded, w, other = Folded(), Producer("w"), Producer("other")
    folded.take(w.store(H[0]), other.store(H[1]))
    step_ns = 10 * NS_PER_S
    for _ in range(SILENCE_NS // step_ns - 1):
        assert folded.take(HolderAlive("other", 1), after_ns=step_ns) == []
    assert folded.take(HolderAlive("other", 1), after_ns=step_ns) == [DropHolder("w")]
    folded.take(w.store(H[2]))
    assert folded.fold.stale() == ("w",)
    folded.take(*w.snapshot())
    assert folded.index.of("w") == {H[0], H[2]}


def test_a_silent_bus_drops_nobody() -> None:
    folded, w, other = Folded(), Producer("w"), Producer("other")
    folded.take(w.store(H[0]), other.store(H[1]))
    assert folded.take(HolderAlive("other", 1), after_ns=3600 * NS_PER_S) == []
    assert folded.take(HolderAlive("other", 1), after_ns=QUIET_BUS_NS) == []
    assert folded.index.of("w") == {H[0]}


def test_everything_writes_an_index_of_unknown_content() -> None:
    folded, w, other = Folded(), Producer("w"), Producer("other")
    folded.take(w.store(H[0]), other.store(H[1]), other.store(H[2]))
    fresh = ModelIndex()
    fresh.held["w"] = (1, {H[5]})
    fresh.apply(folded.fold.everything())
    assert fresh.held == {"other": (1, {H[1], H[2]}), "w": (1, {H[0]})}


# ---------------------------------------------------------------- anything at any time

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


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_the_fold_is_right_or_says_that_it_is_stale(
    steps: list[tuple[int, str, int, str]],
) -> None:
    folded = Folded()
    channel = Channel(folded)
    speakers = [Speaker("a"), Speaker("b")]
    for who, action, place, fate in steps:
        event = speakers[who].act(action, place)
        if event is not None:
            channel.send(event, fate)
        for speaker in speakers:
            producer = speaker.producer
            held = set(folded.fold.held(producer.name))
            assert folded.index.of(producer.name) == held
            heard = channel.heard.get(producer.name)
            if heard is not None and producer.name not in folded.fold.stale():
                assert held == producer.truth[heard]
    for speaker in speakers:
        folded.take(*speaker.producer.snapshot(3))
        held = set(speaker.producer.held)
        assert folded.index.of(speaker.producer.name) == held
    assert folded.fold.stale() == ()
