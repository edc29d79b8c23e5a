"""The fold of kv events against a producer that knows the truth, over a channel that does not."""

from __future__ import annotations

from hypothesis import given, settings
from tests.core.block_producers import STEPS, Channel, Folded, H, ModelIndex, Producer, Speaker

from banyan_core.index_facts import (
    AddBlocks,
    DropHolder,
    HolderAlive,
    HolderGone,
    HolderLoaded,
    Position,
    RemoveBlocks,
    ReplaceBlocks,
    SetEpoch,
)
from banyan_core.index_fold import FORGET_NS, QUIET_BUS_NS, SILENCE_NS
from banyan_core.index_holder import MAX_DELTAS
from banyan_core.types import NS_PER_S

# ---------------------------------------------------------------- one thing at a time


def test_stored_and_removed_blocks_reach_the_index() -> None:
    folded, w = Folded(), Producer("w")
    commands = folded.take(w.store(H[0]), w.store(H[1]), w.remove(H[0]))
    assert commands == [
        SetEpoch("w", 1),
        AddBlocks("w", Position(1, 1), (H[0],)),
        AddBlocks("w", Position(1, 2), (H[1],)),
        RemoveBlocks("w", Position(1, 3), (H[0],)),
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
    assert folded.take(last) == [ReplaceBlocks("w", Position(1, 5), (H[1],))]
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
    assert folded.take(*w.snapshot(1)) == [AddBlocks("w", Position(1, 2), (H[0],))]


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
    assert folded.take(w.store(H[2]), late) == [
        SetEpoch("w", 2),
        AddBlocks("w", Position(2, 1), (H[2],)),
    ]
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


# ---------------------------------------------------------------- bounds


def test_nobody_holds_more_than_it_can() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(HolderAlive("w", 1, num_blocks=3))
    for block in H[:5]:
        folded.take(w.store(block))
    assert folded.fold.held("w") == tuple(H[2:5])
    assert folded.index.of("w") == set(H[2:5])
    folded.take(*w.snapshot())
    assert folded.fold.held("w") == tuple(H[2:5]), (
        "a snapshot of more than it can hold says nothing"
    )


def test_who_is_long_gone_is_forgotten() -> None:
    folded, w, other = Folded(), Producer("w"), Producer("other")
    folded.take(w.store(H[0]), HolderGone("w", 1), other.store(H[1]))
    assert folded.fold.position("w") is not None
    step_ns = 10 * NS_PER_S
    for _ in range(FORGET_NS // step_ns):
        folded.take(HolderAlive("other", 1), after_ns=step_ns)
    assert folded.fold.position("w") is None
    assert folded.fold.held("other") == (H[1],)


def test_a_wait_for_what_was_missed_is_bounded() -> None:
    folded, w = Folded(), Producer("w")
    w.store(H[0])  # lost
    for n in range(MAX_DELTAS + 2):
        folded.take(w.store(H[1 + n % 2]))
    folded.take(HolderLoaded("w", 1, 1, False, (H[0],)))
    assert folded.fold.stale() == ("w",), "what came in between is no longer known"
    folded.take(HolderLoaded("w", 1, w.seq, False, tuple(H[:3])))
    assert folded.fold.stale() == ()
    assert set(folded.fold.held("w")) == set(H[:3])


# ---------------------------------------------------------------- anything at any time


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
