"""Windows, rates, bounds and the cool-down over time: what the HPA documents, a table per rule."""

from __future__ import annotations

import pytest

from banyan_core.policies.scaling import Fixed, ScalingView, TargetTracking
from banyan_core.policies.scaling_limits import Limits, Rate, ScalingDecision, ScalingState, decide
from banyan_core.types import NS_PER_S, Role


def decide_at(
    second: float, want: int, current: int, limits: Limits, state: ScalingState
) -> tuple[ScalingDecision, ScalingState]:
    now = round(second * NS_PER_S)
    return decide(Fixed(want), limits, ScalingView(now, Role.DECODE, current, ()), state)


def test_shrinks_to_the_highest_advice_of_the_down_window() -> None:
    limits = Limits(0, 100, down_window_ns=300 * NS_PER_S)
    state = ScalingState()
    wanted = {}
    for second, want in [(0, 5), (60, 3), (120, 4), (299, 2), (300, 2), (360, 2), (420, 2)]:
        decision, state = decide_at(second, want, 5, limits, state)
        wanted[second] = decision.num_replicas_wanted
    assert wanted == {0: 5, 60: 5, 120: 5, 299: 5, 300: 4, 360: 4, 420: 2}


def test_a_restarted_autoscaler_shrinks_nothing_for_the_window() -> None:
    decision, _ = decide_at(0, 1, 5, Limits(1, 9), ScalingState())
    assert decision.num_replicas_wanted == 5
    assert "highest advice" in decision.reason


def test_grows_at_once_by_default_and_late_with_an_up_window() -> None:
    assert decide_at(0, 3, 1, Limits(1, 9), ScalingState())[0].num_replicas_wanted == 3
    limits = Limits(1, 9, up_window_ns=60 * NS_PER_S)
    decision, state = decide_at(0, 3, 1, limits, ScalingState())
    assert decision.num_replicas_wanted == 1
    assert "lowest advice" in decision.reason
    decision, state = decide_at(59, 4, 1, limits, state)
    assert decision.num_replicas_wanted == 1
    decision, state = decide_at(61, 4, 1, limits, state)
    assert decision.num_replicas_wanted == 4


@pytest.mark.parametrize(
    ("current", "want", "expected"), [(1, 50, 5), (3, 50, 7), (4, 50, 8), (10, 50, 20), (0, 9, 4)]
)
def test_growth_rate_is_the_hpas_default(current: int, want: int, expected: int) -> None:
    limits = Limits(0, 100, down_window_ns=0)
    decision, state = decide_at(0, want, current, limits, ScalingState())
    assert decision.num_replicas_wanted == expected
    again, _ = decide_at(14, want, expected, limits, state)
    assert again.num_replicas_wanted == expected, "the period has its growth"
    later, _ = decide_at(15, want, expected, limits, state)
    assert later.num_replicas_wanted > expected


@pytest.mark.parametrize(
    ("want", "current", "expected", "word"),
    [(9, 2, 4, "max_replicas 4"), (0, 2, 1, "min_replicas 1"), (3, 2, 3, "fixed at 3")],
)
def test_bounds(want: int, current: int, expected: int, word: str) -> None:
    limits = Limits(1, 4, down_window_ns=0)
    decision, _ = decide_at(0, want, current, limits, ScalingState())
    assert decision.num_replicas_wanted == expected
    assert word in decision.reason


def test_cooldown_follows_a_change_and_never_holds_a_bound() -> None:
    limits = Limits(1, 9, down_window_ns=0, cooldown_ns=30 * NS_PER_S)
    decision, state = decide_at(0, 2, 1, limits, ScalingState())
    assert decision.num_replicas_wanted == 2
    decision, state = decide_at(20, 3, 2, limits, state)
    assert decision.num_replicas_wanted == 2
    assert "10 s more of cool-down" in decision.reason
    assert decide_at(21, 3, 0, limits, state)[0].num_replicas_wanted > 0
    assert decide_at(30, 3, 2, limits, state)[0].num_replicas_wanted == 3


@pytest.mark.parametrize(
    ("rate", "current", "up", "down"),
    [
        # The documented example: 4 pods or 10 percent, whichever is more.
        (Rate(4, 10.0, 60 * NS_PER_S), 80, 88, 72),
        (Rate(4, 10.0, 60 * NS_PER_S), 40, 44, 36),
        (Rate(4, 10.0, 60 * NS_PER_S), 10, 14, 6),
        (Rate(4, 0.0, 60 * NS_PER_S), 80, 84, 76),
        # A share of a replica is a whole one, in both directions.
        (Rate(0, 10.0, 60 * NS_PER_S), 3, 4, 2),
        (Rate(1, 0.0, 60 * NS_PER_S), 1, 2, 0),
        (Rate(0, 100.0, 60 * NS_PER_S), 5, 10, 0),
        (Rate(2, 0.0, 60 * NS_PER_S), 0, 2, 0),
    ],
)
def test_rates_of_both_directions(rate: Rate, current: int, up: int, down: int) -> None:
    limits = Limits(0, 1_000, down_window_ns=0, up_rate=rate, down_rate=rate)
    for want, expected in ((999, up), (0, down)):
        decision, _ = decide_at(0, want, current, limits, ScalingState())
        assert decision.num_replicas_wanted == expected, decision.reason


def test_rate_counts_from_the_start_of_its_period() -> None:
    """What was added or removed within the period is no new base, as the HPA has it."""
    limits = Limits(0, 99, down_window_ns=0, down_rate=Rate(1, 0.0, 60 * NS_PER_S))
    decision, state = decide_at(0, 0, 5, limits, ScalingState())
    assert decision.num_replicas_wanted == 4
    assert decision.limited_by == "down_rate"
    for second in (1, 30, 59):
        decision, state = decide_at(second, 0, 4, limits, state)
        assert decision.num_replicas_wanted == 4
    decision, state = decide_at(60, 0, 4, limits, state)
    assert decision.num_replicas_wanted == 3


def test_rate_does_not_undo_what_others_changed() -> None:
    """A person who added ten at once is past any rate: nothing grows, nothing is taken back."""
    limits = Limits(0, 99, down_window_ns=0, up_rate=Rate(1, 0.0, 60 * NS_PER_S))
    decision, state = decide_at(0, 2, 1, limits, ScalingState())
    assert decision.num_replicas_wanted == 2
    decision, state = decide_at(1, 20, 12, limits, state)
    assert decision.num_replicas_wanted == 12


@pytest.mark.parametrize(
    ("limits", "want", "current", "state", "rule"),
    [
        (Limits(1, 9, down_window_ns=0), 2, 1, ScalingState(), ""),
        (Limits(1, 9), 1, 5, ScalingState(), "down_window"),
        (Limits(1, 9, up_window_ns=NS_PER_S), 3, 1, ScalingState(), "up_window"),
        (Limits(1, 99, down_window_ns=0), 50, 1, ScalingState(), "up_rate"),
        (
            Limits(0, 9, down_window_ns=0, down_rate=Rate(1, 0.0, NS_PER_S)),
            *(0, 5, ScalingState(), "down_rate"),
        ),
        (Limits(1, 4, down_window_ns=0), 5, 1, ScalingState(), "max_replicas"),
        (Limits(2, 4, down_window_ns=0), 0, 3, ScalingState(), "min_replicas"),
        (
            Limits(1, 9, down_window_ns=0, cooldown_ns=9 * NS_PER_S),
            *(2, 1, ScalingState(changed_at=0), "cooldown"),
        ),
    ],
)
def test_decision_names_the_rule_that_held_it(
    limits: Limits, want: int, current: int, state: ScalingState, rule: str
) -> None:
    decision, _ = decide_at(1, want, current, limits, state)
    assert decision.limited_by == rule
    assert (decision.num_replicas_wanted == want) == (not rule)


def test_decision_without_figures_says_so() -> None:
    empty = ScalingView(0, Role.DECODE, 3, ())
    decision, _ = decide(TargetTracking(), Limits(1, 4), empty, ScalingState())
    assert (decision.num_replicas_wanted, decision.limited_by) == (3, "no_figures")
    assert (decision.figure, decision.target) == (None, 4.0)
    bounded, _ = decide(TargetTracking(), Limits(1, 2), empty, ScalingState())
    assert (bounded.num_replicas_wanted, bounded.limited_by) == (2, "max_replicas")
