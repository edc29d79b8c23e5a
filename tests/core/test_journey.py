"""The journey alone: facts in, commands out, no service anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from banyan_core.journey import JourneyLimits
from banyan_core.journey_messages import (
    Accepted,
    AckEnd,
    Admitted,
    CancelSequence,
    ClientGone,
    Deliver,
    EndChoice,
    EndRequest,
    JourneyCommand,
    JourneyFact,
    NotPlaced,
    Place,
    Placed,
    Refused,
    ReleaseLease,
    Reported,
    StartDecode,
    StartPrefill,
    Stopped,
    WorkerLost,
)
from banyan_core.journeys import Journeys
from banyan_core.types import (
    NS_PER_MS,
    NS_PER_S,
    Candidate,
    Decision,
    Finish,
    Outcome,
    OutputToken,
    Placement,
    Refusal,
    Role,
    SamplingParams,
    SequenceFigures,
    SequenceReport,
    ShedReason,
    WorkerRef,
)

P = WorkerRef("p0", 1, "p0:1", Role.PREFILL)
P2 = WorkerRef("p1", 1, "p1:1", Role.PREFILL)
D = WorkerRef("d0", 1, "d0:1", Role.DECODE)
D2 = WorkerRef("d1", 1, "d1:1", Role.DECODE)
DECISION = Decision("test", 1)


@dataclass
class Desk:
    """Plays the gateway: keeps time and sorts the commands."""

    limits: JourneyLimits = field(default_factory=JourneyLimits)
    now: int = 0
    commands: list[JourneyCommand] = field(default_factory=list)
    next_wake: int | None = None

    def __post_init__(self) -> None:
        self.machine = Journeys("g0", 1, self.limits)

    def tell(self, *facts: JourneyFact, after_ns: int = 0) -> list[JourneyCommand]:
        self.now += after_ns
        stepped = self.machine.step(self.now, facts)
        self.next_wake = stepped.next_wake
        self.commands += stepped.commands
        return list(stepped.commands)

    def accept(self, max_tokens: int = 4, n: int = 1, deadline_ns: int | None = None) -> Place:
        sampling = SamplingParams(max_tokens=max_tokens, seed=7)
        (place,) = self.tell(
            Accepted(
                "r", "t", "m", b"card", (1, 2, 3), (), b"salt", sampling, n, 0, 0, deadline_ns, True
            )
        )
        assert isinstance(place, Place)
        return place

    def place(self, place: Place, decode: WorkerRef, prefill: WorkerRef | None = None) -> list[str]:
        """Answer a placement; the ids of the sequences that it started, in order."""
        query = place.query
        started = self.tell(
            Placed("r", query.choice, query.attempt, Placement(decode, prefill), DECISION)
        )
        assert all(isinstance(command, StartPrefill | StartDecode) for command in started)
        return [
            command.spec.sequence_id
            for command in started
            if isinstance(command, StartPrefill | StartDecode)
        ]

    def report(
        self,
        worker: WorkerRef,
        sequence_id: str,
        first_index: int,
        tokens: tuple[int, ...],
        finish: Finish | None = None,
        figures: SequenceFigures | None = None,
    ) -> list[JourneyCommand]:
        outputs = tuple(OutputToken(token) for token in tokens)
        report = SequenceReport(sequence_id, first_index, outputs, finish, "", figures)
        return self.tell(Reported(worker.worker_id, (report,)))

    def delivered(self, choice: int = 0) -> list[int]:
        return [
            token.token_id
            for command in self.commands
            if isinstance(command, Deliver) and command.choice == choice
            for token in command.tokens
        ]

    def end(self) -> EndRequest:
        (end,) = [command for command in self.commands if isinstance(command, EndRequest)]
        return end


def only_place(commands: list[JourneyCommand]) -> Place:
    (place,) = [command for command in commands if isinstance(command, Place)]
    return place


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


@pytest.mark.parametrize("finish", [Finish.DRAINED, Finish.UNKNOWN, Finish.CANCELLED])
def test_a_worker_that_lets_go_is_a_loss(finish: Finish) -> None:
    desk = Desk()
    (d,) = desk.place(desk.accept(), D)
    desk.report(D, d, 0, (10,))
    place = only_place(desk.report(D, d, 1, (), finish))
    assert place.query.num_output_tokens == 1


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
