"""How many replicas a role should have: one policy per way of recommending, one wrapper for all.

A policy recommends a number from a frozen view and what it remembers. `Limits` then applies what
holds for every policy: bounds, the stabilisation window, the rate, the cool-down. Target tracking
and the limits compute what the Kubernetes HPA controller computes (replica_calculator.go and
horizontal.go, behaviour `autoscaling/v2` with its defaults).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from banyan_core.types import NS_PER_S, Role, WorkerLoad


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of a role. `load` is None when its figures are missing.

    `ready` is False while it starts: it counts as a replica and says nothing yet.
    """

    worker_id: str
    ready: bool
    load: WorkerLoad | None
    num_blocks: int = 0


@dataclass(frozen=True, slots=True)
class ScalingView:
    """What is known of one role at `now` (ns); replicas in order of id, draining ones left out."""

    now: int
    role: Role
    num_replicas: int
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What a policy alone would do, and why. None: it knows too little to say."""

    num_replicas: int | None
    reason: str


PolicyMemory = tuple[float, ...]
"""What a policy remembers from one decision to the next; plain, so that a replay can show it."""


class ScalingPolicy(Protocol):
    """Pure: the same view and memory give the same answer."""

    def recommend(
        self, view: ScalingView, memory: PolicyMemory
    ) -> tuple[Recommendation, PolicyMemory]: ...


# ---------------------------------------------------------------- fixed


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number."""

    num_replicas: int = 1

    def __post_init__(self) -> None:
        if self.num_replicas < 0:
            raise ValueError(f"num_replicas must be 0 or more, not {self.num_replicas}")

    def recommend(
        self, view: ScalingView, memory: PolicyMemory
    ) -> tuple[Recommendation, PolicyMemory]:
        return Recommendation(self.num_replicas, f"fixed at {self.num_replicas}"), memory


# ---------------------------------------------------------------- target tracking


def _used_blocks_share(replica: Replica, load: WorkerLoad) -> float:
    return 1 - load.num_free_blocks / replica.num_blocks if replica.num_blocks else 0.0


METRICS: dict[str, Callable[[Replica, WorkerLoad], float]] = {
    "num_waiting": lambda _, load: float(load.num_waiting),
    "num_running": lambda _, load: float(load.num_running),
    "num_sequences": lambda _, load: float(load.num_waiting + load.num_running),
    "num_waiting_tokens": lambda _, load: float(load.num_waiting_tokens),
    "kv_usage": _used_blocks_share,
}
"""What target tracking can follow: a figure per replica, whose mean is held at the target."""


@dataclass(frozen=True, slots=True)
class TargetTracking:
    """desired = ceil(replicas x mean / target), nothing within the tolerance.

    Replicas without figures are taken to be at the target when scaling down and at 0 when scaling
    up, replicas that are not ready at 0 when scaling up; if that turns the direction, nothing is
    done.
    """

    metric: str = "num_sequences"
    target: float = 4.0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")
        if not self.target > 0:
            raise ValueError(f"target must be above 0, not {self.target}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be from 0 to below 1, not {self.tolerance}")

    def recommend(
        self, view: ScalingView, memory: PolicyMemory
    ) -> tuple[Recommendation, PolicyMemory]:
        figure = METRICS[self.metric]
        ready = [r for r in view.replicas if r.ready]
        values = [figure(r, r.load) for r in ready if r.load is not None]
        if not values:
            return Recommendation(None, "no figures of any ready replica"), memory
        num_missing, num_unready = len(ready) - len(values), len(view.replicas) - len(ready)
        ratio = sum(values) / len(values) / self.target
        wanted = self._desired(view.num_replicas, values, num_missing, num_unready)
        reason = f"mean {self.metric} {ratio * self.target:.4g} of target {self.target:.4g}"
        reason += f" over {len(values)} replicas"
        if num_missing or num_unready:
            reason += f" ({num_missing} without figures, {num_unready} not ready)"
        return Recommendation(wanted, reason), memory

    def _desired(
        self, num_replicas: int, values: list[float], num_missing: int, num_unready: int
    ) -> int:
        ratio = sum(values) / len(values) / self.target
        unready_count = num_unready if ratio > 1 else 0
        if not unready_count and not num_missing:
            return num_replicas if self._is_near(ratio) else math.ceil(ratio * len(values))
        assumed = list(values)
        if ratio < 1:
            assumed += [self.target] * num_missing
        elif ratio > 1:
            assumed += [0.0] * (num_missing + unready_count)
        cautious = sum(assumed) / len(assumed) / self.target
        turned = (ratio < 1 < cautious) or (cautious < 1 < ratio)
        wanted = math.ceil(cautious * len(assumed))
        grows_down = (cautious < 1 and wanted > num_replicas) or (
            cautious > 1 and wanted < num_replicas
        )
        return num_replicas if self._is_near(cautious) or turned or grows_down else wanted

    def _is_near(self, ratio: float) -> bool:
        return 1 - self.tolerance <= ratio <= 1 + self.tolerance


# ---------------------------------------------------------------- limits, for every policy

RATE_PERIOD_NS = 15 * NS_PER_S
MAX_ADDED_REPLICAS = 4
MAX_GROWTH = 2
"""The HPA's default scale-up rate: per 15 s four replicas or a doubling, whichever is more."""
MAX_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and delays. The windows are nanoseconds; `cooldown_ns` follows any applied change."""

    min_replicas: int = 1
    max_replicas: int = 1
    down_window_ns: int = 300 * NS_PER_S
    up_window_ns: int = 0
    cooldown_ns: int = 0


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What one role's scaling remembers. Instants are on the clock of the views."""

    memory: PolicyMemory = ()
    recommended: tuple[tuple[int, int], ...] = ()
    grown: tuple[tuple[int, int], ...] = ()
    changed_at: int | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The number that holds after all limits, and the way to it in words."""

    num_replicas_now: int
    num_replicas_wanted: int
    reason: str

    @property
    def is_change(self) -> bool:
        return self.num_replicas_wanted != self.num_replicas_now


def decide(
    policy: ScalingPolicy, limits: Limits, view: ScalingView, state: ScalingState
) -> tuple[ScalingDecision, ScalingState]:
    """The policy's recommendation within its limits, and the state to bring next time."""
    now, current = view.now, view.num_replicas
    advice, memory = policy.recommend(view, state.memory)
    reasons = [advice.reason]
    # The HPA starts its history with the present number, so that a restart shrinks nothing.
    history = state.recommended or ((now, current),)
    wanted = current
    if advice.num_replicas is not None:
        window = max(limits.down_window_ns, limits.up_window_ns)
        history = (*(r for r in history if now - r[0] < window), (now, advice.num_replicas))
        wanted = _stabilised(advice.num_replicas, current, history, limits, now, reasons)
        wanted = _rated(wanted, current, state, now, reasons)
    wanted = _bounded(wanted, limits, reasons)
    wanted = _cooled(wanted, current, state, limits, now, reasons)
    decision = ScalingDecision(current, wanted, "; ".join(reasons))
    return decision, _next_state(state, memory, history[-MAX_REMEMBERED:], decision, now)


def _next_state(
    state: ScalingState,
    memory: PolicyMemory,
    history: tuple[tuple[int, int], ...],
    decision: ScalingDecision,
    now: int,
) -> ScalingState:
    grown = tuple(g for g in state.grown if now - g[0] < RATE_PERIOD_NS)
    delta = decision.num_replicas_wanted - decision.num_replicas_now
    if delta > 0:
        grown = (*grown, (now, delta))
    changed_at = now if delta else state.changed_at
    return ScalingState(memory, history, grown, changed_at)


def _stabilised(
    advised: int,
    current: int,
    history: tuple[tuple[int, int], ...],
    limits: Limits,
    now: int,
    reasons: list[str],
) -> int:
    """Down only to the most that was advised in the down window, up to the least in the up one."""
    ceiling = max([advised, *(n for at, n in history if now - at < limits.down_window_ns)])
    floor = min([advised, *(n for at, n in history if now - at < limits.up_window_ns)])
    wanted = min(max(current, floor), ceiling)
    if wanted > advised:
        seconds = limits.down_window_ns // NS_PER_S
        reasons.append(f"{advised} held at {wanted}: highest advice of the last {seconds} s")
    elif wanted < advised:
        seconds = limits.up_window_ns // NS_PER_S
        reasons.append(f"{advised} held at {wanted}: lowest advice of the last {seconds} s")
    return wanted


def _rated(wanted: int, current: int, state: ScalingState, now: int, reasons: list[str]) -> int:
    recent = sum(delta for at, delta in state.grown if now - at < RATE_PERIOD_NS)
    start = max(0, current - recent)
    most = max(current, start * MAX_GROWTH, start + MAX_ADDED_REPLICAS)
    if wanted > most:
        reasons.append(f"at most {most} within {RATE_PERIOD_NS // NS_PER_S} s")
    return min(wanted, most)


def _bounded(wanted: int, limits: Limits, reasons: list[str]) -> int:
    if wanted > limits.max_replicas:
        reasons.append(f"bounded by max_replicas {limits.max_replicas}")
    elif wanted < limits.min_replicas:
        reasons.append(f"bounded by min_replicas {limits.min_replicas}")
    return min(max(wanted, limits.min_replicas), limits.max_replicas)


def _cooled(
    wanted: int,
    current: int,
    state: ScalingState,
    limits: Limits,
    now: int,
    reasons: list[str],
) -> int:
    in_bounds = limits.min_replicas <= current <= limits.max_replicas
    if wanted == current or state.changed_at is None or not in_bounds:
        return wanted
    left_ns = state.changed_at + limits.cooldown_ns - now
    if left_ns <= 0:
        return wanted
    reasons.append(f"{wanted} waits {left_ns / NS_PER_S:.0f} s more of cool-down")
    return current
