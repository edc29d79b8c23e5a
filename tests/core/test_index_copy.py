"""A copy that begins with what the index has and goes on with the news."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.block_producers import STEPS, Channel, Folded, H, Producer, Speaker

from banyan_core.index_facts import HolderLoaded


def test_what_the_index_has_goes_on_with_the_news_after_it() -> None:
    folded, w = Folded(), Producer("w")
    w.store(H[0]), w.store(H[1])  # before the copy listened
    loaded = HolderLoaded("w", 1, w.seq, False, tuple(w.held))
    folded.take(w.remove(H[0]), w.store(H[2]))
    assert folded.fold.stale() == ("w",)
    folded.take(loaded)
    assert folded.fold.stale() == ()
    assert folded.fold.prefixes([H[1], H[2], H[0]]) == (("w", 2),)
    folded.take(w.store(H[0]))
    assert folded.fold.prefixes([H[1], H[2], H[0]]) == (("w", 3),)


def test_an_index_that_has_not_come_to_the_hole_heals_nothing() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]))
    early = HolderLoaded("w", 1, w.seq, False, tuple(w.held))
    w.remove(H[0])  # lost
    folded.take(w.store(H[1]))
    assert folded.take(early) == []
    assert folded.fold.stale() == ("w",)
    folded.take(HolderLoaded("w", 1, 2, False, ()))
    assert folded.fold.stale() == ()
    assert folded.fold.held("w") == (H[1],)


def test_an_index_that_is_behind_changes_nothing() -> None:
    folded, w = Folded(), Producer("w")
    folded.take(w.store(H[0]), w.store(H[1]))
    assert folded.take(HolderLoaded("w", 1, 1, False, (H[0], H[7]))) == []
    assert folded.take(HolderLoaded("w", 0, 99, False, (H[7],))) == []
    assert folded.fold.held("w") == (H[0], H[1])


def test_a_copy_of_what_missed_something_is_stale_itself() -> None:
    folded = Folded()
    folded.take(HolderLoaded("w", 1, 5, True, (H[0],)))
    assert folded.fold.stale() == ("w",)
    assert folded.fold.held("w") == (H[0],)
    folded.take(HolderLoaded("w", 1, 5, False, (H[1],)))
    assert folded.fold.stale() == ()
    assert folded.fold.held("w") == (H[1],)


def test_prefixes_end_at_the_first_hole() -> None:
    folded, a, b = Folded(), Producer("a"), Producer("b")
    folded.take(*(a.store(H[n]) for n in (0, 1, 3)), *(b.store(H[n]) for n in (0, 1, 2)))
    assert folded.fold.prefixes(H[:4]) == (("a", 2), ("b", 3))
    assert folded.fold.prefixes(H[1:]) == (("a", 1), ("b", 2))
    assert folded.fold.prefixes(H[5:]) == ()
    assert folded.fold.prefixes(()) == ()


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, loads=st.lists(st.integers(0, 120), max_size=8))
def test_a_copy_that_loads_now_and_then_is_right_or_says_that_it_is_stale(
    steps: list[tuple[int, str, int, str]], loads: list[int]
) -> None:
    """The writer and the copy hear the same producers over different channels."""
    writer, copy = Folded(), Folded()
    to_writer, to_copy = Channel(writer), Channel(copy)
    speakers = [Speaker("a"), Speaker("b")]
    for number, (who, action, place, fate) in enumerate(steps):
        event = speakers[who].act(action, place)
        if event is not None:
            to_writer.send(event, "deliver" if place % 3 else fate)
            to_copy.send(event, fate)
        for speaker in speakers:
            name, producer = speaker.producer.name, speaker.producer
            if number in loads and name in writer.index.at:
                load(copy, writer, name)
            at = copy.fold.position(name)
            if at is not None and not at.stale and at.seq > 0:
                assert set(copy.fold.held(name)) == producer.truth[at.epoch, at.seq]
    for speaker in speakers:
        writer.take(*speaker.producer.snapshot(3))
        load(copy, writer, speaker.producer.name)
        assert set(copy.fold.held(speaker.producer.name)) == set(speaker.producer.held)
    assert copy.fold.stale() == ()


def load(copy: Folded, writer: Folded, name: str) -> None:
    at, held = writer.index.at[name], tuple(sorted(writer.index.of(name)))
    if at.epoch == writer.index.held[name][0]:
        copy.take(HolderLoaded(name, at.epoch, at.seq, at.stale, held))
