"""A journey whose workers refuse, vanish, let go or contradict what stands."""

from __future__ import annotations

import pytest
from tests.core.journey_desk import D2, DECISION, D, Desk, P, only_place

from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    Admitted,
    CancelSequence,
    ClientGone,
    JourneyCommand,
    Place,
    Placed,
    Refused,
    StartDecode,
    WorkerLost,
)
from banyan_core.placement import Placement
from banyan_core.types import NS_PER_MS, NS_PER_S, Finish, Outcome, Refusal


def test_a_repeated_token_is_delivered_once_and_a_contradiction_never() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    desk.report(D, d, 0, (10, 11))
    assert desk.delivered() == [10, 11]
    after = desk.report(D, d, 1, (99,))
    assert CancelSequence("d0", d) in after
    assert only_place(after).query.num_output_tokens == 2
    assert desk.delivered() == [10, 11]


def test_lost_decode_goes_on_at_the_next_index() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    desk.report(D, d, 1, (11,))
    place = only_place(desk.tell(WorkerLost("d0", 1, "gone")))
    assert place.query.excluded == ("d0",)
    assert place.query.num_output_tokens == 2
    (again,) = desk.place(place, P)
    start = desk.commands[-1]
    assert isinstance(start, StartDecode)
    assert start.spec.output_token_ids == (10, 11)
    desk.report(P, again, 2, (12, 13), Finish.LENGTH)
    assert desk.delivered() == [10, 11, 12, 13]
    assert desk.end().record.num_recoveries == 1


def test_news_of_a_stale_attempt_is_ignored() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    desk.report(D, d, 1, (11,))
    desk.tell(WorkerLost("d0", 1, "partition"))
    assert desk.report(D, d, 2, (99,)) == []
    assert desk.delivered() == [10, 11]


def test_another_life_of_a_worker_is_not_this_one() -> None:
    desk = Desk()
    desk.place(desk.accept(), D, P)
    assert desk.tell(WorkerLost("d0", 2, "gone")) == []


def test_lost_prefill_leaves_decode_to_compute_the_prompt() -> None:
    desk = Desk()
    _, d = desk.place(desk.accept(), D, P)
    after = desk.tell(WorkerLost("p0", 1, "gone"))
    assert not any(isinstance(command, Place) for command in after)
    desk.report(D, d, 0, (10, 11, 12, 13), Finish.LENGTH)
    assert desk.delivered() == [10, 11, 12, 13]
    assert desk.end().record.num_recoveries == 1


def test_without_recovery_a_loss_fails_the_request() -> None:
    desk = Desk(JourneyLimits(recover=False))
    p, _ = desk.place(desk.accept(), D, P)
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    desk.tell(WorkerLost("d0", 1, "gone"))
    assert desk.end().record.outcome is Outcome.FAILED
    assert desk.end().retryable


def test_a_refusing_decode_alone_is_placed_again() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    place = only_place(desk.tell(Refused("d0", d, Refusal("full", 5 * NS_PER_MS))))
    assert place.query.kept_prefill == "p0"
    assert place.query.excluded == ("d0",)
    desk.tell(Placed("r", 0, place.query.attempt, Placement(D2, P), DECISION))
    start = desk.commands[-1]
    assert isinstance(start, StartDecode)
    assert start.source is not None
    assert start.source.lease_id == p


def test_a_refusing_prefill_places_both_again() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    after = desk.tell(Refused("p0", p, Refusal("full")))
    assert CancelSequence("d0", d) in after
    assert only_place(after).query.kept_prefill == ""


def test_a_promise_after_the_cancel_is_cancelled_again() -> None:
    desk = Desk()
    _, d = desk.place(desk.accept(), D, P)
    desk.tell(ClientGone("r", "closed"))
    assert desk.tell(Admitted("d0", d)) == [CancelSequence("d0", d)]


def test_tries_without_progress_are_bounded() -> None:
    desk = Desk(JourneyLimits(max_failures=5))
    commands: list[JourneyCommand] = [desk.accept()]
    for _ in range(40):
        if not desk.machine.num_open:
            break
        places = [command for command in commands if isinstance(command, Place)]
        if not places:
            commands = desk.tell(after_ns=NS_PER_S)
            continue
        (sequence_id,) = desk.place(places[0], D)
        commands = desk.tell(Refused("d0", sequence_id, Refusal("unreachable"), unreachable=True))
    assert desk.end().record.outcome is Outcome.SHED


@pytest.mark.parametrize("finish", [Finish.DRAINED, Finish.UNKNOWN, Finish.CANCELLED])
def test_a_worker_that_lets_go_is_a_loss(finish: Finish) -> None:
    desk = Desk()
    (d,) = desk.place(desk.accept(), D)
    desk.report(D, d, 0, (10,))
    place = only_place(desk.report(D, d, 1, (), finish))
    assert place.query.num_output_tokens == 1
