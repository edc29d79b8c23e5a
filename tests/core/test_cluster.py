"""The router's view: reports, silence, epochs, and placements that no report contains yet."""

from __future__ import annotations

from collections.abc import Sequence

from tests.core.clusters import ref, seen

from banyan_core.cluster import (
    FORGET_NS,
    PLACEMENT_NS,
    SILENCE_NS,
    ClusterFact,
    ClusterView,
    LivenessChanged,
    LoadReported,
    PlacedHere,
    Share,
    WorkerLost,
    WorkerView,
)
from banyan_core.types import NS_PER_S, WorkerLoad


def load(worker_id: str, epoch: int = 1, *admitted: str, **figures: int) -> LoadReported:
    report = WorkerLoad(admitted=admitted, **figures)  # type: ignore[arg-type] # counts only
    return LoadReported(worker_id, epoch, report)


def placed(choice: str, worker_id: str, num_tokens: int = 100) -> PlacedHere:
    return PlacedHere(choice, (Share(worker_id, num_tokens, 7),))


def folded(*facts: ClusterFact, now: int = 0) -> ClusterView:
    view = ClusterView()
    view.step(now, facts)
    return view


def only(view: ClusterView, now: int = 0) -> WorkerView:
    (worker,) = view.snapshot(now).workers
    return worker


def liveness(commands: Sequence[LivenessChanged]) -> list[tuple[str, bool]]:
    return [(change.ref.worker_id, change.live) for change in commands]


def test_a_report_of_the_same_epoch_counts() -> None:
    worker = only(folded(seen("d0"), load("d0", num_running=3, num_free_blocks=9)))
    assert (worker.load.num_running, worker.num_free_blocks, worker.live) == (3, 9, True)


def test_a_newer_epoch_replaces_all_that_was_known() -> None:
    view = folded(seen("d0"), load("d0", num_running=3), placed("r/0", "d0"), seen("d0", epoch=2))
    worker = only(view)
    assert worker.ref.epoch == 2
    assert worker.num_sequences == 0


def test_facts_of_an_older_epoch_are_ignored() -> None:
    view = folded(seen("d0", epoch=2), load("d0", 2, num_running=1))
    view.step(0, (seen("d0", epoch=1), load("d0", 1, num_running=9), WorkerLost("d0", 1)))
    worker = only(view)
    assert (worker.ref.epoch, worker.load.num_running, worker.live) == (2, 1, True)


def test_a_load_of_an_unknown_worker_is_ignored() -> None:
    assert folded(load("d0")).snapshot(0).workers == ()


def test_workers_come_in_order_of_id() -> None:
    view = folded(seen("d1"), seen("d0"), seen("p0"))
    assert [w.ref.worker_id for w in view.snapshot(0).workers] == ["d0", "d1", "p0"]


def test_silence_ends_liveness_at_the_very_instant() -> None:
    view = folded(seen("d0"), now=5)
    stepped = view.step(6, ())
    assert stepped.next_wake == 5 + SILENCE_NS
    assert only(view, 4 + SILENCE_NS).live
    assert not only(view, 5 + SILENCE_NS).live
    assert liveness(view.step(5 + SILENCE_NS, ()).commands) == [("d0", False)]
    assert view.step(6 + SILENCE_NS, ()).commands == []


def test_a_report_revives_and_says_so_once() -> None:
    view = folded(seen("d0"))
    view.step(SILENCE_NS, ())
    assert liveness(view.step(SILENCE_NS + 1, (load("d0"), load("d0"))).commands) == [("d0", True)]
    assert only(view, SILENCE_NS + 1).live


def test_a_broken_watch_ends_liveness_and_a_new_watch_brings_it_back() -> None:
    view = folded(seen("d0"))
    assert liveness(view.step(1, (WorkerLost("d0", 1),)).commands) == [("d0", False)]
    assert not only(view, 1).live
    assert liveness(view.step(2, (seen("d0"),)).commands) == [("d0", True)]


def test_a_worker_silent_for_long_is_forgotten() -> None:
    view = folded(seen("d0"))
    view.step(SILENCE_NS, ())
    stepped = view.step(FORGET_NS - 1, ())
    assert stepped.next_wake == FORGET_NS
    view.step(FORGET_NS, ())
    assert view.snapshot(FORGET_NS).workers == ()


def test_own_placements_count_until_the_worker_admits_them() -> None:
    view = folded(seen("d0"), load("d0", num_free_blocks=20), placed("r/0", "d0"))
    worker = only(view)
    assert (worker.num_sequences, worker.num_queued_tokens, worker.num_free_blocks) == (1, 100, 13)
    view.step(1, (load("d0", 1, "r/0/4", num_running=1, num_free_blocks=13),))
    worker = only(view, 1)
    assert (worker.num_sequences, worker.num_queued_tokens, worker.num_free_blocks) == (1, 0, 13)


def test_admission_of_another_choice_drops_nothing() -> None:
    view = folded(seen("d0"), placed("r/0", "d0"), load("d0", 1, "r/1/2"))
    assert only(view).num_placed_sequences == 1


def test_a_placement_that_never_arrives_is_dropped_in_time() -> None:
    view = folded(seen("d0"), placed("r/0", "d0"), now=10)
    for second in range(1, 5):
        view.step(10 + second * NS_PER_S, (load("d0"),))
    assert only(view).num_placed_sequences == 1
    assert view.step(10 + 4 * NS_PER_S, ()).next_wake == 10 + PLACEMENT_NS
    view.step(10 + PLACEMENT_NS, (load("d0"),))
    assert only(view).num_placed_sequences == 0


def test_placing_a_choice_again_replaces_its_share() -> None:
    view = folded(seen("d0"), placed("r/0", "d0", 100), placed("r/0", "d0", 30))
    assert only(view).num_queued_tokens == 30


def test_a_snapshot_does_not_change_with_the_view() -> None:
    view = folded(seen("d0"))
    before = view.snapshot(0)
    view.step(1, (load("d0", num_running=5),))
    assert before.worker("d0") is not None
    assert only(view).load.num_running == 5
    assert before.workers[0].load.num_running == 0
    assert before.worker("nobody") is None
    assert before.workers[0].ref == ref("d0")
