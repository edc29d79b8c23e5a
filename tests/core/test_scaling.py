"""The HPA's arithmetic by table, and the loop with its actuator's answers."""

from __future__ import annotations

import pytest

from banyan_core.events import Event, ScaleDecided, WorkerAlive, WorkerGone
from banyan_core.policies.scaling import Fixed, Replica, ScalingView, TargetTracking
from banyan_core.policies.scaling_limits import Limits, ScalingState, decide
from banyan_core.scaling_loop import (
    FORGET_NS,
    ActuatorFailed,
    CountReplicas,
    Publish,
    ReplicaCounts,
    ReplicasSet,
    RoleScaling,
    ScalingCommand,
    ScalingLoop,
    SetReplicas,
)
from banyan_core.types import NS_PER_S, Role, WorkerLoad, WorkerRef

UNBOUNDED = Limits(min_replicas=0, max_replicas=1_000, down_window_ns=0)


def view(*figures: float | None, unready: int = 0, now: int = 0) -> ScalingView:
    """Ready replicas with this many sequences (None: figures missing), then unready ones."""
    ready = [
        Replica(f"w{i}", True, None if n is None else WorkerLoad(num_running=int(n)))
        for i, n in enumerate(figures)
    ]
    starting = [Replica(f"s{i}", False, None) for i in range(unready)]
    replicas = (*ready, *starting)
    return ScalingView(now, Role.DECODE, len(replicas), replicas)


# ---------------------------------------------------------------- target tracking


@pytest.mark.parametrize(
    ("figures", "unready", "target", "expected"),
    [
        # The documented ones: 200 of 100 doubles, 50 of 100 halves (rounded up), 1.0 stays.
        ((200,), 0, 100, 2),
        ((200, 200, 200), 0, 100, 6),
        ((50, 50), 0, 100, 1),
        ((50, 50, 50), 0, 100, 2),
        ((100, 100), 0, 100, 2),
        # Within 10 % nothing happens, at its edge included.
        ((110, 110), 0, 100, 2),
        ((90, 90), 0, 100, 2),
        ((111, 111), 0, 100, 3),
        ((89,) * 10, 0, 100, 9),
        # The mean counts, not the single replica.
        ((300, 0, 0), 0, 100, 3),
        ((0, 0, 0), 0, 100, 0),
        # Missing figures: 0 when growing. 300/3 would be 100 %: nothing.
        ((150, 150, None), 0, 100, 3),
        ((300, 300, None), 0, 100, 6),
        ((120, 120, None), 0, 100, 3),  # growing would turn into shrinking
        # Missing figures: the target when shrinking.
        ((50, 50, None), 0, 100, 2),
        ((10, 10, None), 0, 100, 2),
        ((80, None, None, None), 0, 100, 4),  # within the tolerance then
        # Not ready: 0 when growing, left out when shrinking.
        ((300,), 1, 100, 3),
        ((150,), 1, 100, 2),
        ((200,), 3, 100, 4),
        ((50, 50), 2, 100, 1),
        ((300, None), 1, 100, 3),
    ],
)
def test_hpa_arithmetic(
    figures: tuple[float | None, ...], unready: int, target: float, expected: int
) -> None:
    policy = TargetTracking("num_running", target)
    advice, _ = policy.recommend(view(*figures, unready=unready), ())
    assert advice.num_replicas == expected, advice.reason


def test_without_figures_there_is_no_advice_and_no_change() -> None:
    policy = TargetTracking("num_running", 1.0)
    for blind in (view(None, None), view(unready=2), view()):
        advice, _ = policy.recommend(blind, ())
        assert advice.num_replicas is None
        decision, state = decide(policy, UNBOUNDED, blind, ScalingState())
        assert not decision.is_change
        assert len(state.recommended) == 1, "what is not known is not remembered as advice"


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("num_waiting", 1.0),
        ("num_running", 2.0),
        ("num_sequences", 3.0),
        ("num_waiting_tokens", 40.0),
        ("kv_usage", 0.75),
    ],
)
def test_metrics(metric: str, value: float) -> None:
    load = WorkerLoad(num_waiting=1, num_running=2, num_waiting_tokens=40, num_free_blocks=4)
    at = ScalingView(0, Role.DECODE, 1, (Replica("w", True, load, num_blocks=16),))
    assert TargetTracking(metric, value).recommend(at, ())[0].num_replicas == 1
    assert TargetTracking(metric, value / 2).recommend(at, ())[0].num_replicas == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: TargetTracking("num_cats"),
        lambda: TargetTracking(target=0.0),
        lambda: TargetTracking(tolerance=1.0),
        lambda: Fixed(-1),
    ],
)
def test_bad_parameters(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="must be"):
        make()


def test_bounds_hold_without_figures() -> None:
    policy = TargetTracking()
    decision, _ = decide(policy, Limits(2, 4), view(), ScalingState())
    assert decision.num_replicas_wanted == 2


# ---------------------------------------------------------------- the loop

LEASE = 3 * NS_PER_S
PERIOD = 15 * NS_PER_S


def alive(
    worker_id: str,
    running: int = 0,
    *,
    seq: int = 1,
    epoch: int = 1,
    role: Role = Role.DECODE,
    draining: bool = False,
) -> Event:
    ref = WorkerRef(worker_id, epoch, f"{worker_id}:1", role)
    load = WorkerLoad(num_running=running, draining=draining)
    return Event(worker_id, epoch, seq, 0, WorkerAlive(ref, "m", 8, load, LEASE))


def gone(worker_id: str, seq: int) -> Event:
    ref = WorkerRef(worker_id, 1, f"{worker_id}:1", Role.DECODE)
    return Event(worker_id, 1, seq, 0, WorkerGone(ref, "drained"))


def loop(target: float = 4.0, limits: Limits = UNBOUNDED) -> ScalingLoop:
    tracking = RoleScaling("target_tracking", TargetTracking("num_running", target), limits)
    return ScalingLoop({Role.DECODE: tracking}, "test", PERIOD)


def published(commands: object) -> ScaleDecided:
    assert isinstance(commands, list | tuple) and len(commands) == 1
    assert isinstance(commands[0], Publish)
    return commands[0].decided


def counts(decode: int) -> ReplicaCounts:
    return ReplicaCounts(((Role.PREFILL, 1), (Role.DECODE, decode)))


def tick(machine: ScalingLoop, now: int, decode: int, *events: Event) -> list[ScalingCommand]:
    """One period: hear, count, decide."""
    asked = machine.step(now, events)
    assert list(asked.commands) == [CountReplicas()]
    assert asked.next_wake == now + PERIOD
    return list(machine.step(now, [counts(decode)]).commands)


def test_first_step_waits_a_period() -> None:
    machine = loop()
    first = machine.step(100, [])
    assert (list(first.commands), first.next_wake) == ([], 100 + PERIOD)
    assert list(machine.step(PERIOD, []).commands) == []


def test_change_is_published_when_the_actuator_has_answered() -> None:
    machine = loop()
    machine.step(0, [])
    commands = tick(machine, PERIOD, 1, alive("w0", 8))
    assert [type(c) for c in commands] == [SetReplicas]
    assert isinstance(commands[0], SetReplicas)
    assert (commands[0].role, commands[0].num_replicas) == (Role.DECODE, 2)
    decided = published(machine.step(PERIOD + 1, [ReplicasSet(Role.DECODE, 2, True)]).commands)
    assert decided == ScaleDecided(
        Role.DECODE,
        1,
        2,
        "target_tracking",
        "mean num_running 8 of target 4 over 1 replicas",
        "test",
        True,
        8.0,
        4.0,
    )


def test_hold_is_published_too() -> None:
    machine = loop()
    machine.step(0, [])
    decided = published(tick(machine, PERIOD, 1, alive("w0", 4)))
    assert (decided.num_replicas_now, decided.num_replicas_wanted) == (1, 1)
    assert not decided.applied


def test_failed_actuator_is_told_and_uses_up_no_cooldown() -> None:
    machine = loop(limits=Limits(0, 9, down_window_ns=0, cooldown_ns=60 * NS_PER_S))
    machine.step(0, [])
    tick(machine, PERIOD, 1, alive("w0", 8))
    failed = machine.step(PERIOD + 1, [ActuatorFailed(Role.DECODE, "disk full")]).commands
    decided = published(failed)
    assert not decided.applied
    assert decided.reason.endswith("actuator failed: disk full")
    commands = tick(machine, 2 * PERIOD, 1, alive("w0", 8, seq=2))
    assert [type(c) for c in commands] == [SetReplicas]


def test_counting_that_fails_is_tried_again_next_period() -> None:
    machine = loop()
    machine.step(0, [])
    assert list(machine.step(PERIOD, []).commands) == [CountReplicas()]
    assert list(machine.step(2 * PERIOD, []).commands) == [], "one question at a time"
    machine.step(2 * PERIOD, [ActuatorFailed(None, "gone")])
    assert list(machine.step(3 * PERIOD, []).commands) == [CountReplicas()]


def test_role_waits_for_its_actuator() -> None:
    machine = loop()
    machine.step(0, [])
    tick(machine, PERIOD, 1, alive("w0", 8))
    assert tick(machine, 2 * PERIOD, 1, alive("w0", 8, seq=2)) == []


@pytest.mark.parametrize(
    ("events", "count", "wanted"),
    [
        ((alive("w0", 8), alive("w1", 8)), 2, 4),
        ((alive("w0", 8), alive("p0", 99, role=Role.PREFILL)), 1, 2),
        ((alive("w0", 8), alive("w1", 99, draining=True)), 1, 2),
        ((alive("w0", 8), alive("w1", 99), gone("w1", 2)), 1, 2),
        ((alive("w0", 8), alive("w0", 99, epoch=0)), 1, 2),  # an older life
        ((alive("w0", 8, seq=2), alive("w0", 99, seq=1)), 1, 2),  # a duplicate
        ((alive("w0", 8),), 2, 2),  # the second is starting: 8 / 2 is the target
        ((alive("w0", 16),), 2, 4),
        ((alive("w0", 1),), 4, 1),  # starting ones are left out when shrinking
    ],
)
def test_what_counts_as_a_replica(events: tuple[Event, ...], count: int, wanted: int) -> None:
    machine = loop()
    machine.step(0, [])
    command = tick(machine, PERIOD, count, *events)[0]
    if isinstance(command, SetReplicas):
        assert command.num_replicas == wanted
    else:
        assert published([command]).num_replicas_wanted == wanted


def test_silent_worker_is_without_figures_then_forgotten() -> None:
    machine = loop(target=10.0)
    machine.step(0, [alive("w1", 5)])
    command = tick(machine, PERIOD, 2, alive("w0", 4))[0]
    # 4 of 10 alone would be one replica; the silent one counts as 10 of 10: ceil(1.4) = 2.
    assert published([command]).num_replicas_wanted == 2
    later = FORGET_NS + 2 * PERIOD
    command = tick(machine, later, 2, alive("w0", 4, seq=2))[0]
    assert isinstance(command, SetReplicas)
    assert command.num_replicas == 1
