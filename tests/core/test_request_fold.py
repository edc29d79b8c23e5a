"""One end per accepted request, whatever the bus repeats, reorders across gateways or loses."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_core import request_fold
from banyan_core.events import (
    Event,
    GatewayAlive,
    Payload,
    RequestAccepted,
    RequestEnded,
)
from banyan_core.request_fold import (
    AUDIBLE_NS,
    GATEWAY_LOST,
    BusHeard,
    Closed,
    RequestFold,
)
from banyan_core.types import NS_PER_S, Outcome

LEASE = 5 * NS_PER_S
V = TypeVar("V")


class Gateway:
    """Numbers its events as a producer does."""

    def __init__(self, name: str = "g1", epoch: int = 1) -> None:
        self.name, self.epoch, self.seq = name, epoch, 0

    def say(self, payload: Payload, at: int = 0) -> Event:
        self.seq += 1
        return Event(self.name, self.epoch, self.seq, at, payload)

    def accept(self, request_id: str, at: int = 0) -> Event:
        return self.say(RequestAccepted(request_id, "t", "m", 7), at)

    def end(self, request_id: str, outcome: Outcome = Outcome.FINISHED) -> Event:
        return self.say(RequestEnded(request_id, "t", "m", outcome))

    def alive(self, num_requests: int = 1) -> Event:
        return self.say(GatewayAlive(num_requests, LEASE))


def ends(closed: Sequence[Closed]) -> list[tuple[str, Outcome, str, bool]]:
    return [(c.ended.request_id, c.ended.outcome, c.ended.reason, c.told) for c in closed]


def run_silent(fold: RequestFold, start: int, until: int, every: int) -> list[Closed]:
    """Only other producers are heard."""
    closed: list[Closed] = []
    for now in range(start, until + 1, every):
        closed += fold.step(now, [BusHeard()]).commands
    return closed


def test_told_end_closes_once() -> None:
    fold, gateway = RequestFold(), Gateway()
    accept, end = gateway.accept("a"), gateway.end("a")
    assert fold.step(0, [accept]).commands == []
    assert fold.num_open == 1
    assert ends(fold.step(1, [end]).commands) == [("a", Outcome.FINISHED, "", True)]
    assert fold.step(2, [accept, end]).commands == []
    assert (fold.num_open, fold.num_duplicates, fold.num_missing) == (0, 2, 0)


def test_newer_epoch_loses_the_requests_of_the_older() -> None:
    fold, old, new = RequestFold(), Gateway(epoch=1), Gateway(epoch=2)
    fold.step(0, [old.accept("a", at=10), old.accept("b", at=30)])
    closed = fold.step(1, [new.accept("c")]).commands
    assert ends(closed) == [
        ("a", Outcome.FAILED, GATEWAY_LOST, True),
        ("b", Outcome.FAILED, GATEWAY_LOST, True),
    ]
    assert [c.ended.e2e_ns for c in closed] == [20, 0], "until the gateway was last heard"
    assert [c.ended.num_prompt_tokens for c in closed] == [7, 7]
    assert fold.step(2, [old.end("a")]).commands == [], "nothing of an older epoch is used"
    assert fold.num_open == 1


def test_lease_ends_when_others_are_heard() -> None:
    fold, gateway = RequestFold(), Gateway()
    fold.step(0, [gateway.accept("a"), gateway.alive()])
    assert run_silent(fold, NS_PER_S // 2, LEASE - 1, NS_PER_S // 2) == []
    closed = run_silent(fold, LEASE, LEASE + NS_PER_S, NS_PER_S // 2)
    assert ends(closed) == [("a", Outcome.FAILED, GATEWAY_LOST, True)]
    assert fold.num_open == 0


def test_lease_is_renewed_by_any_word() -> None:
    fold, gateway = RequestFold(), Gateway()
    fold.step(0, [gateway.accept("a")])
    for second in range(1, 20):
        event = gateway.alive() if second % 4 == 0 else BusHeard()
        assert fold.step(second * NS_PER_S, [event]).commands == []
    assert fold.num_open == 1


def test_silence_of_the_whole_bus_is_not_a_death() -> None:
    fold, gateway = RequestFold(), Gateway()
    wake = fold.step(0, [gateway.accept("a"), gateway.alive()]).next_wake
    assert wake is None, "nothing can be concluded without hearing somebody"
    assert fold.step(100 * LEASE, []).commands == []
    first = 100 * LEASE + 1
    assert fold.step(first, [BusHeard()]).commands == [], "the gateway's own word is on its way"
    assert ends(fold.step(first + 1, [gateway.end("a")]).commands) == [
        ("a", Outcome.FINISHED, "", True)
    ]


def test_wakes_when_the_lease_ends_within_the_audible_time() -> None:
    fold, gateway = RequestFold(), Gateway()
    fold.step(0, [gateway.accept("a"), gateway.alive()])
    now, wake = 0, None
    for now in range(AUDIBLE_NS, LEASE, AUDIBLE_NS):
        wake = fold.step(now, [BusHeard()]).next_wake
    assert wake == LEASE == now + AUDIBLE_NS
    assert fold.step(wake - 1, []).commands == []
    assert ends(fold.step(wake, []).commands) == [("a", Outcome.FAILED, GATEWAY_LOST, True)]


def test_end_after_the_lease_is_counted_not_used() -> None:
    fold, gateway = RequestFold(), Gateway()
    fold.step(0, [gateway.accept("a"), gateway.alive()])
    assert len(run_silent(fold, 0, 2 * LEASE, NS_PER_S // 2)) == 1
    assert fold.step(3 * LEASE, [gateway.end("a")]).commands == []
    assert fold.num_late_ends == 1


def test_lost_end_shows_when_the_gateway_is_idle() -> None:
    fold, gateway = RequestFold(), Gateway()
    fold.step(0, [gateway.accept("a")])
    gateway.end("a")  # never arrives
    assert fold.step(1, [gateway.alive(1)]).commands == []
    assert fold.num_missing == 1
    closed = fold.step(2, [gateway.alive(0)]).commands
    assert [(c.ended.request_id, c.told) for c in closed] == [("a", False)]


def test_end_without_accept_still_counts() -> None:
    fold, gateway = RequestFold(), Gateway()
    gateway.accept("a")  # retention took it
    assert ends(fold.step(0, [gateway.end("a")]).commands) == [("a", Outcome.FINISHED, "", True)]
    assert fold.num_missing == 0, "what came before the first word is not a gap"


def test_open_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_fold, "MAX_OPEN", 3)
    monkeypatch.setattr(request_fold, "MAX_CLOSED", 2)
    monkeypatch.setattr(request_fold, "MAX_GATEWAYS", 2)
    fold, gateway = RequestFold(), Gateway()
    closed = fold.step(0, [gateway.accept(f"r{i}") for i in range(5)]).commands
    assert [(c.ended.request_id, c.told) for c in closed] == [("r0", False), ("r1", False)]
    others = [Gateway(f"h{i}") for i in range(2)]
    closed = fold.step(1, [other.accept("x", at=9) for other in others]).commands
    assert "r2" in [c.ended.request_id for c in closed]
    assert fold.num_open <= 3


# ---------------------------------------------------------------- any run of gateways


@dataclass(frozen=True)
class Story:
    """Per gateway: its events in order, which are lost, which come twice."""

    events: list[list[Event]]
    lost: set[tuple[str, int, int]]
    order: list[int]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    events: list[list[Event]] = []
    for name in ("g1", "g2", "g3")[: draw(st.integers(1, 3))]:
        told: list[Event] = []
        for epoch in range(1, draw(st.integers(1, 2)) + 1):
            gateway = Gateway(name, epoch)
            ids = [f"{name}/{epoch}/{i}" for i in range(draw(st.integers(0, 5)))]
            told += [gateway.accept(request_id) for request_id in ids]
            told += [gateway.end(i, draw(st.sampled_from(Outcome))) for i in draw(subset(ids))]
            told.append(gateway.alive())
        events.append(told)
    keys = [(e.producer, e.epoch, e.seq) for told in events for e in told]
    lost = set(draw(subset(keys)))
    lanes = [i for i, told in enumerate(events) for _ in told]
    return Story(events, lost, draw(st.permutations(lanes)))


def subset(values: list[V]) -> st.SearchStrategy[list[V]]:
    return st.lists(st.sampled_from(values), unique=True) if values else st.just([])


@given(stories(), st.data())
def test_one_end_per_accepted_request(story: Story, data: st.DataObject) -> None:
    fold, closed = RequestFold(), Counter[tuple[str, bool]]()
    heard: set[str] = set()
    delivered: dict[str, list[Event]] = {}
    lanes = [iter(told) for told in story.events]
    now = 0
    for lane in story.order:
        event = next(lanes[lane])
        if (event.producer, event.epoch, event.seq) in story.lost:
            continue
        past = delivered.setdefault(event.producer, [])
        past.append(event)
        again = data.draw(st.integers(0, 2))
        batch = [event, *past[-again:]] if again else [event]
        now += 1
        for end in fold.step(now, batch).commands:
            closed[(end.ended.request_id, end.told)] += 1
        if isinstance(event.payload, RequestAccepted | RequestEnded):
            heard.add(event.payload.request_id)
    for end in run_silent(fold, now, now + 3 * LEASE, NS_PER_S):
        closed[(end.ended.request_id, end.told)] += 1
    assert fold.num_open == 0
    assert {request_id for request_id, _ in closed} == heard
    assert set(closed.values()) <= {1} and all(told for _, told in closed)
    assert fold.num_missing == expected_gaps(delivered)


def expected_gaps(delivered: dict[str, list[Event]]) -> int:
    """Numbers skipped within a life, and before the first word of every life but the first."""
    gaps = 0
    for events in delivered.values():
        for before, after in itertools.pairwise(events):
            same_life = before.epoch == after.epoch
            gaps += after.seq - (before.seq if same_life else 0) - 1
    return gaps
