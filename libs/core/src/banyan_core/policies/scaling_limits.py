"""What holds for every scaling policy: stabilisation windows, rates, bounds and the cool-down.

In the order, and with the defaults, of the Kubernetes HPA controller (horizontal.go, behaviour of
`autoscaling/v2`); the cool-down is ours and off by default. A decision names the last rule that
changed its number, so that an operator sees at a glance what holds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from banyan_core.policies.scaling import PolicyMemory, ScalingPolicy, ScalingView
from banyan_core.types import NS_PER_S

MAX_REMEMBERED = 1_000


class Rule(StrEnum):
    """What can keep a decision from being what the policy recommends."""

    NO_FIGURES = "no_figures"
    DOWN_WINDOW = "down_window"
    UP_WINDOW = "up_window"
    UP_RATE = "up_rate"
    DOWN_RATE = "down_rate"
    MAX_REPLICAS = "max_replicas"
    MIN_REPLICAS = "min_replicas"
    COOLDOWN = "cooldown"


@dataclass(frozen=True, slots=True)
class Rate:
    """The most change within a period: so many replicas or so many percent, whichever is more."""

    num_replicas: int
    percent: float
    period_ns: int

    def most(self, num_at_start: int) -> int:
        return max(
            num_at_start + self.num_replicas, math.ceil(num_at_start * (1 + self.percent / 100))
        )

    def least(self, num_at_start: int) -> int:
        return min(
            num_at_start - self.num_replicas, math.floor(num_at_start * (1 - self.percent / 100))
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, windows (ns), rates, and `cooldown_ns`, which follows any applied change.

    Growing: four replicas or a doubling per 15 s. Shrinking: all at once, after the window.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    down_window_ns: int = 300 * NS_PER_S
    up_window_ns: int = 0
    cooldown_ns: int = 0
    up_rate: Rate = Rate(4, 100.0, 15 * NS_PER_S)
    down_rate: Rate = Rate(0, 100.0, 15 * NS_PER_S)


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What one role's scaling remembers. Instants are on the clock of the views.

    `recommended` are (instant, number), `changes` are (instant, replicas added or removed).
    """

    memory: PolicyMemory = ()
    recommended: tuple[tuple[int, int], ...] = ()
    changes: tuple[tuple[int, int], ...] = ()
    changed_at: int | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The number that holds after all limits, and the way to it in words and figures."""

    num_replicas_now: int
    num_replicas_wanted: int
    reason: str
    figure: float | None = None
    target: float | None = None
    limited_by: str = ""

    @property
    def is_change(self) -> bool:
        return self.num_replicas_wanted != self.num_replicas_now


@dataclass(slots=True)
class _Way:
    """From the policy's number to the decision's: each rule may change it and says so."""

    wanted: int
    reasons: list[str] = field(default_factory=list)
    limited_by: str = ""

    def limit(self, wanted: int, rule: Rule, reason: str) -> None:
        if wanted != self.wanted:
            self.wanted, self.limited_by = wanted, rule.value
            self.reasons.append(reason)


def decide(
    policy: ScalingPolicy, limits: Limits, view: ScalingView, state: ScalingState
) -> tuple[ScalingDecision, ScalingState]:
    """The policy's recommendation within its limits, and the state to bring next time."""
    now, current = view.now, view.num_replicas
    advice, memory = policy.recommend(view, state.memory)
    # The HPA starts its history with the present number, so that a restart shrinks nothing.
    history = state.recommended or ((now, current),)
    if advice.num_replicas is None:
        way = _Way(current, [advice.reason], Rule.NO_FIGURES.value)
    else:
        way = _Way(advice.num_replicas, [advice.reason])
        window = max(limits.down_window_ns, limits.up_window_ns)
        history = (*(r for r in history if now - r[0] < window), (now, advice.num_replicas))
        _stabilise(way, current, history, limits, now)
        _rate(way, current, state, limits, now)
    _bound(way, limits)
    _cool(way, current, state, limits, now)
    decision = ScalingDecision(
        current, way.wanted, "; ".join(way.reasons), advice.figure, advice.target, way.limited_by
    )
    return decision, _next_state(state, memory, history[-MAX_REMEMBERED:], decision, limits, now)


def _next_state(
    state: ScalingState,
    memory: PolicyMemory,
    history: tuple[tuple[int, int], ...],
    decision: ScalingDecision,
    limits: Limits,
    now: int,
) -> ScalingState:
    period_ns = max(limits.up_rate.period_ns, limits.down_rate.period_ns)
    changes = tuple(change for change in state.changes if now - change[0] < period_ns)
    delta = decision.num_replicas_wanted - decision.num_replicas_now
    if delta:
        changes = (*changes, (now, delta))
    changed_at = now if delta else state.changed_at
    return ScalingState(memory, history, changes[-MAX_REMEMBERED:], changed_at)


def _stabilise(
    way: _Way, current: int, history: tuple[tuple[int, int], ...], limits: Limits, now: int
) -> None:
    """Down only to the most that was advised in the down window, up to the least in the up one."""
    advised = way.wanted
    ceiling = max([advised, *(n for at, n in history if now - at < limits.down_window_ns)])
    floor = min([advised, *(n for at, n in history if now - at < limits.up_window_ns)])
    wanted = min(max(current, floor), ceiling)
    if wanted > advised:
        seconds = limits.down_window_ns / NS_PER_S
        reason = f"{advised} held at {wanted}: highest advice of the last {seconds:g} s"
        way.limit(wanted, Rule.DOWN_WINDOW, reason)
    elif wanted < advised:
        seconds = limits.up_window_ns / NS_PER_S
        reason = f"{advised} held at {wanted}: lowest advice of the last {seconds:g} s"
        way.limit(wanted, Rule.UP_WINDOW, reason)


def _rate(way: _Way, current: int, state: ScalingState, limits: Limits, now: int) -> None:
    most = max(current, limits.up_rate.most(_at_start(current, state, limits.up_rate, now)))
    least = min(current, limits.down_rate.least(_at_start(current, state, limits.down_rate, now)))
    if way.wanted > most:
        seconds = limits.up_rate.period_ns / NS_PER_S
        way.limit(most, Rule.UP_RATE, f"at most {most} within {seconds:g} s")
    elif way.wanted < least:
        seconds = limits.down_rate.period_ns / NS_PER_S
        way.limit(least, Rule.DOWN_RATE, f"at least {least} within {seconds:g} s")


def _at_start(current: int, state: ScalingState, rate: Rate, now: int) -> int:
    """How many replicas there were when the rate's period began."""
    return max(0, current - sum(n for at, n in state.changes if now - at < rate.period_ns))


def _bound(way: _Way, limits: Limits) -> None:
    most, least = limits.max_replicas, limits.min_replicas
    if way.wanted > most:
        way.limit(most, Rule.MAX_REPLICAS, f"bounded by max_replicas {most}")
    elif way.wanted < least:
        way.limit(least, Rule.MIN_REPLICAS, f"bounded by min_replicas {least}")


def _cool(way: _Way, current: int, state: ScalingState, limits: Limits, now: int) -> None:
    """A bound does not wait: it is what the operator said, not what a figure did."""
    in_bounds = limits.min_replicas <= current <= limits.max_replicas
    if way.wanted == current or state.changed_at is None or not in_bounds:
        return
    left_ns = state.changed_at + limits.cooldown_ns - now
    if left_ns > 0:
        reason = f"{way.wanted} waits {left_ns / NS_PER_S:.0f} s more of cool-down"
        way.limit(current, Rule.COOLDOWN, reason)
