"""How many replicas a role should have: one policy per way of recommending.

A policy recommends a number from a frozen view and what it remembers; `scaling_limits` applies
what holds for every policy. Target tracking computes what the Kubernetes HPA controller computes
for a metric per pod (replica_calculator.go).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from banyan_core.types import Role, WorkerLoad


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
    """What a policy alone would do, and why. None: it knows too little to say.

    `figure` is what it saw and `target` what it holds that against, where it has such.
    """

    num_replicas: int | None
    reason: str
    figure: float | None = None
    target: float | None = None


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
            advice = Recommendation(None, "no figures of any ready replica", target=self.target)
            return advice, memory
        num_missing, num_unready = len(ready) - len(values), len(view.replicas) - len(ready)
        mean = sum(values) / len(values)
        wanted = self._desired(view.num_replicas, values, num_missing, num_unready)
        reason = f"mean {self.metric} {mean:.4g} of target {self.target:.4g}"
        reason += f" over {len(values)} replicas"
        if num_missing or num_unready:
            reason += f" ({num_missing} without figures, {num_unready} not ready)"
        return Recommendation(wanted, reason, mean, self.target), memory

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
