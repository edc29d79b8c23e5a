"""The supervisor's plan: what is started, restarted, drained and stopped, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banyan_cli import plan as p
from banyan_cli import plan_messages as m
from banyan_core.types import NS_PER_S

MESH = {"valkey": 1, "router": 1, "prefill": 1, "decode": 1, "gateway": 1}


class Driven:
    """A plan, its time, and what it has said and done."""

    def __init__(self, counts: dict[str, int] = MESH) -> None:
        self.plan = p.Plan(counts)
        self.now = 0
        self.wake: int | None = None
        self.done: list[m.Command] = []

    def tell(self, *facts: m.Fact) -> Sequence[m.Command]:
        stepped = self.plan.step(self.now, facts)
        self.wake = stepped.next_wake
        self.done += stepped.commands
        return stepped.commands

    def until_wake(self) -> Sequence[m.Command]:
        assert self.wake is not None
        self.now = self.wake
        return self.tell()

    def phase(self, name: str) -> p.Phase:
        (found,) = [one.phase for one in self.plan.processes if one.name == name]
        return found

    def bring_up(self) -> None:
        started = starts(self.tell())
        while started:
            started = starts(self.tell(*(m.BecameReady(name) for name in started)))


def starts(commands: Sequence[m.Command]) -> list[str]:
    return [command.name for command in commands if isinstance(command, m.Start)]


def terminated(commands: Sequence[m.Command]) -> list[str]:
    return [command.name for command in commands if isinstance(command, m.Terminate)]


def said(commands: Sequence[m.Command]) -> str:
    return "; ".join(command.text for command in commands if isinstance(command, m.Say))


@pytest.fixture
def up() -> Driven:
    driven = Driven()
    driven.bring_up()
    return driven


def test_others_start_when_valkey_answers() -> None:
    driven = Driven()
    assert starts(driven.tell()) == ["valkey"]
    assert starts(driven.tell()) == []
    after = driven.tell(m.BecameReady("valkey"))
    assert starts(after) == ["router", "prefill-0", "decode-0", "gateway"]


def test_all_ready_is_said_once(up: Driven) -> None:
    assert up.done.count(m.AllReady()) == 1
    up.tell(m.Exited("router", -9))
    up.until_wake()
    up.tell(m.BecameReady("router"))
    assert up.done.count(m.AllReady()) == 1


def test_crash_is_said_and_restarted_after_the_back_off(up: Driven) -> None:
    commands = up.tell(m.Exited("decode-0", -9))
    assert "decode-0 was killed by signal 9" in said(commands)
    assert starts(commands) == []
    assert up.wake == up.now + p.FIRST_BACKOFF_NS
    assert starts(up.until_wake()) == ["decode-0"]
    assert "decode-0 is ready again" in said(up.tell(m.BecameReady("decode-0")))


def test_back_off_doubles_up_to_its_bound() -> None:
    waits = [p.backoff_ns(failures) for failures in range(1, 60)]
    assert waits[:3] == [p.FIRST_BACKOFF_NS, 2 * p.FIRST_BACKOFF_NS, 4 * p.FIRST_BACKOFF_NS]
    assert max(waits) == waits[-1] == p.MAX_BACKOFF_NS


def test_restarts_in_a_row_end_and_a_steady_process_starts_from_zero(up: Driven) -> None:
    for _ in range(p.MAX_FAILURES - 1):
        up.tell(m.Exited("router", 1))
        up.until_wake()
    up.tell(m.BecameReady("router"))
    up.now += p.STEADY_NS
    assert "again in" in said(up.tell(m.Exited("router", 1)))
    for _ in range(p.MAX_FAILURES - 2):
        up.until_wake()
        up.tell(m.Exited("router", 1))
    up.until_wake()
    assert "given up" in said(up.tell(m.Exited("router", 1)))
    assert up.phase("router") is p.Phase.GIVEN_UP
    assert up.wake is None


def test_what_cannot_start_as_set_up_stops_the_mesh() -> None:
    driven = Driven()
    driven.tell()
    driven.tell(m.BecameReady("valkey"))
    commands = driven.tell(m.Exited("router", p.EXIT_NOT_STARTED, "policy is wrong"))
    assert "router cannot start: policy is wrong" in said(commands)
    while driven.done[-1] != m.Finish(p.EXIT_NOT_STARTED):
        names = [one.name for one in driven.plan.processes if one.runs]
        assert names
        driven.tell(*(m.Exited(name, 0) for name in names))


def test_start_that_hangs_is_killed_and_tried_again(up: Driven) -> None:
    up.tell(m.Exited("prefill-0", 1))
    up.until_wake()
    commands = up.until_wake()
    assert m.Kill("prefill-0") in commands
    up.tell(m.Exited("prefill-0", -9))
    assert starts(up.until_wake()) == ["prefill-0"]


def test_wish_starts_the_next_worker_and_drains_the_newest(up: Driven) -> None:
    assert starts(up.tell(m.Wished({"decode": 3}))) == ["decode-1", "decode-2"]
    up.tell(m.BecameReady("decode-1"), m.BecameReady("decode-2"))
    assert terminated(up.tell(m.Wished({"decode": 2}))) == ["decode-2"]
    assert up.phase("decode-2") is p.Phase.STOPPING
    commands = up.tell(m.Exited("decode-2", 0))
    assert starts(commands) == []
    assert "decode-2" not in [one.name for one in up.plan.processes]


def test_name_of_a_draining_worker_is_not_given_again(up: Driven) -> None:
    up.tell(m.Wished({"decode": 2}))
    up.tell(m.BecameReady("decode-1"))
    up.tell(m.Wished({"decode": 1}))
    assert starts(up.tell(m.Wished({"decode": 2}))) == ["decode-2"]


def test_wish_waits_until_the_mesh_is_up() -> None:
    driven = Driven()
    driven.tell(m.Wished({"decode": 2}))
    driven.tell(m.BecameReady("valkey"))
    last = driven.tell(*(m.BecameReady(name) for name in starts(driven.done)))
    assert starts(last) == ["decode-1"]


def test_wishes_are_bounded(up: Driven) -> None:
    up.tell(m.Wished({"prefill": 1000}))
    assert len([one for one in up.plan.processes if one.service == "prefill"]) == p.MAX_REPLICAS


def test_stop_goes_in_stages_and_ends_when_nothing_runs(up: Driven) -> None:
    assert terminated(up.tell(m.StopAsked())) == ["gateway"]
    assert terminated(up.tell(m.Exited("gateway", 0))) == ["prefill-0", "decode-0"]
    assert terminated(up.tell(m.Exited("decode-0", 0))) == []
    assert terminated(up.tell(m.Exited("prefill-0", 0))) == ["router"]
    assert terminated(up.tell(m.Exited("router", 0))) == ["valkey"]
    assert list(up.tell(m.Exited("valkey", 0))) == [m.Finish(0)]


def test_slow_stop_is_killed_and_a_second_asking_kills_at_once(up: Driven) -> None:
    up.tell(m.StopAsked())
    up.now += p.STOP_TIMEOUT_NS
    assert m.Kill("gateway") in up.tell()
    commands = up.tell(m.StopAsked())
    assert [c.name for c in commands if isinstance(c, m.Kill)] == [
        "valkey",
        "router",
        "prefill-0",
        "decode-0",
    ]


def test_stop_while_a_process_rests_does_not_wait_for_it(up: Driven) -> None:
    up.tell(m.Exited("gateway", 1))
    assert terminated(up.tell(m.StopAsked())) == ["prefill-0", "decode-0"]


NAMES = ("valkey", "router", "prefill-0", "decode-0", "decode-1", "gateway")
FACTS = st.one_of(
    st.builds(m.BecameReady, st.sampled_from(NAMES)),
    st.builds(m.Exited, st.sampled_from(NAMES), st.sampled_from((0, 1, 2, -9))),
    st.builds(m.Wished, st.fixed_dictionaries({"decode": st.integers(-1, 3)})),
    st.just(m.StopAsked()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FACTS, st.integers(0, 30)), max_size=40))
def test_never_two_lives_at_once_and_a_stop_always_ends(
    history: list[tuple[m.Fact, int]],
) -> None:
    """Whatever happens in whatever order, as long as it happens to processes that run."""
    driven = Driven()
    running: list[str] = []

    def follow(commands: Sequence[m.Command]) -> None:
        for name in starts(commands):
            assert name not in running
            running.append(name)

    follow(driven.tell())
    for fact, seconds in history:
        driven.now += seconds * NS_PER_S
        if isinstance(fact, m.Exited):
            if fact.name not in running:
                continue
            running.remove(fact.name)
        follow(driven.tell(fact))
    follow(driven.tell(m.StopAsked()))
    for _ in range(len(NAMES) + 4):
        for name in list(running):
            running.remove(name)
            follow(driven.tell(m.Exited(name, -9)))
    assert [command for command in driven.done if isinstance(command, m.Finish)]
    assert not any(one.runs for one in driven.plan.processes)
