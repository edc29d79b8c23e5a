"""The journey alone: facts in, commands out, no service anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.journey_desk import D, Desk, P, only_place

from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    AckEnd,
    Admitted,
    CancelSequence,
    EndChoice,
    NotPlaced,
    Place,
    ReleaseLease,
    StartDecode,
    Stopped,
)
from banyan_core.placement import Candidate, Decision
from banyan_core.types import (
    NS_PER_MS,
    NS_PER_S,
    Finish,
    Outcome,
    Refusal,
    Role,
    SequenceFigures,
    ShedReason,
)


def test_split_request_streams_and_ends_once() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    desk.tell(Admitted("p0", p), Admitted("d0", d))
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    released = desk.report(D, d, 1, (11,), None, SequenceFigures())
    assert ReleaseLease(P, p) in released
    last = desk.report(D, d, 2, (12, 13), Finish.LENGTH)
    assert EndChoice("r", 0, Finish.LENGTH) in last
    assert AckEnd("d0", d) in last
    assert desk.delivered() == [10, 11, 12, 13]
    record = desk.end().record
    assert record.outcome is Outcome.FINISHED
    assert [leg.end for leg in record.legs] == ["handed over", "length"]
    assert desk.machine.num_open == 0


def test_decode_ahead_of_the_first_token_waits_for_it() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    desk.report(D, d, 1, (11, 12))
    assert desk.delivered() == []
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    assert desk.delivered() == [10, 11, 12]


def test_the_first_token_may_come_by_the_decode_worker() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    passed_on = desk.report(D, d, 0, (10,))
    assert desk.delivered() == [10]
    assert ReleaseLease(P, p) not in passed_on
    desk.report(P, p, 0, (10,), Finish.LENGTH, SequenceFigures(num_cached_tokens=2))
    desk.report(D, d, 1, (11, 12, 13), Finish.LENGTH, SequenceFigures(num_cached_tokens=3))
    assert desk.delivered() == [10, 11, 12, 13]
    assert desk.end().record.num_cached_tokens == 2


def test_one_output_token_opens_no_decode() -> None:
    desk = Desk()
    (p,) = desk.place(desk.accept(max_tokens=1), D, P)
    desk.report(P, p, 0, (10,), Finish.LENGTH)
    assert desk.end().record.outcome is Outcome.FINISHED
    assert [leg.end for leg in desk.end().record.legs] == ["length"]
    assert not any(isinstance(command, StartDecode) for command in desk.commands)


def test_an_end_token_at_once_ends_both_legs() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(), D, P)
    commands = desk.report(P, p, 0, (2,), Finish.STOP)
    assert CancelSequence("d0", d) in commands
    assert ReleaseLease(P, p) in commands
    assert desk.end().record.finish_reasons == ("stop",)


def test_no_worker_waits_then_sheds_at_the_queue_timeout() -> None:
    desk = Desk(JourneyLimits(queue_timeout_ns=NS_PER_S))
    place = desk.accept()
    for tick_ms in (400, 800, 1000):
        refused = NotPlaced("r", 0, place.query.attempt, Refusal("none is live", 400 * NS_PER_MS))
        desk.tell(refused)
        assert desk.next_wake == tick_ms * NS_PER_MS
        commands = desk.tell(after_ns=tick_ms * NS_PER_MS - desk.now)
        if desk.machine.num_open:
            place = only_place(commands)
    end = desk.end()
    assert end.record.shed is ShedReason.QUEUE_TIMEOUT
    assert end.record.reason == "no worker took it within 1 s: none is live"
    assert end.record.outcome is Outcome.SHED
    assert end.retryable
    assert end.retry_after_ns >= NS_PER_S
    assert dict(end.record.ledger) == {"queue": 1000 * NS_PER_MS}


def _too_small(worker_id: str, *others: str) -> Decision:
    reasons = ("no room: needs 9 blocks, has 8 in all", *others)
    candidates = [Candidate(f"{worker_id}{i}", Role.DECODE, why) for i, why in enumerate(reasons)]
    return Decision("test", 1, tuple(candidates))


@pytest.mark.parametrize("others", [(), ("model card ab is not cd",)])
def test_what_fits_into_no_pool_is_told_so_at_once(others: tuple[str, ...]) -> None:
    desk = Desk()
    place = desk.accept()
    decision = _too_small("d", *others)
    refusal = Refusal("no worker can take it", NS_PER_S)
    desk.tell(NotPlaced("r", 0, place.query.attempt, refusal, decision))
    record = desk.end().record
    assert record.shed is ShedReason.TOO_LARGE
    assert record.reason == (
        "3 tokens fit into no worker's KV pool (d0: no room: needs 9 blocks, has 8 in all)"
    )
    assert record.decisions == (decision,)


@pytest.mark.parametrize("other", ["not live: last heard 900 ms ago", "draining"])
def test_what_a_worker_that_is_away_may_have_room_for_waits(other: str) -> None:
    desk = Desk()
    place = desk.accept()
    refusal = Refusal("no worker can take it", NS_PER_S)
    desk.tell(NotPlaced("r", 0, place.query.attempt, refusal, _too_small("d", other)))
    assert desk.machine.num_open == 1


def test_the_deadline_ends_a_silent_stream() -> None:
    desk = Desk()
    p, d = desk.place(desk.accept(deadline_ns=NS_PER_S), D, P)
    desk.report(P, p, 0, (10,))
    assert desk.next_wake == NS_PER_S
    commands = desk.tell(after_ns=NS_PER_S)
    assert CancelSequence("d0", d) in commands
    assert desk.end().record.outcome is Outcome.FAILED


def test_later_choices_wait_for_the_first_token_of_the_first() -> None:
    desk = Desk()
    first = desk.accept(n=3)
    p, _ = desk.place(first, D, P)
    after = desk.report(P, p, 0, (10,))
    places = [command.query.choice for command in after if isinstance(command, Place)]
    assert places == [1, 2]


def test_choices_have_seeds_of_their_own() -> None:
    desk = Desk()
    (first,) = desk.place(desk.accept(n=2), D)
    after = desk.report(D, first, 0, (10,))
    desk.place(only_place(after), D)
    seeds = [c.spec.sampling.seed for c in desk.commands if isinstance(c, StartDecode)]
    assert len(set(seeds)) == 2


def test_a_stop_string_cuts_what_is_counted() -> None:
    desk = Desk()
    (d,) = desk.place(desk.accept(max_tokens=10), D)
    desk.report(D, d, 0, (10, 11, 12))
    commands = desk.tell(Stopped("r", 0, 2))
    assert CancelSequence("d0", d) in commands
    assert desk.end().record.num_output_tokens == 2
    assert desk.end().record.finish_reasons == ("stop",)


def test_the_ledger_adds_up_and_moves_with_the_hop() -> None:
    desk = Desk()
    place = desk.accept()
    desk.now += 3 * NS_PER_MS
    p, d = desk.place(place, D, P)
    desk.tell(Admitted("p0", p), Admitted("d0", d), after_ns=2 * NS_PER_MS)
    desk.now += 20 * NS_PER_MS
    desk.report(P, p, 0, (10,), Finish.LENGTH, SequenceFigures(compute_ns=15 * NS_PER_MS))
    desk.now += 7 * NS_PER_MS
    first = SequenceFigures(compute_ns=4 * NS_PER_MS, fetch_ns=24 * NS_PER_MS)
    desk.report(D, d, 1, (11,), None, first)
    desk.now += 6 * NS_PER_MS
    done = replace(first, compute_ns=9 * NS_PER_MS, queue_ns=NS_PER_MS)
    desk.report(D, d, 2, (12, 13), Finish.LENGTH, done)
    record = desk.end().record
    milliseconds = {part: duration // NS_PER_MS for part, duration in record.ledger}
    assert milliseconds == {
        "place": 3,
        "dispatch": 2,
        "prefill_compute": 15,
        "prefill_transit": 5,
        "handover": 2,
        "decode_queue": 1,
        "decode_compute": 9,
        "decode_transit": 1,
    }
    assert sum(duration for _, duration in record.ledger) == record.e2e_ns
