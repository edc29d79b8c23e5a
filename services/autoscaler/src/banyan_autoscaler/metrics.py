"""The autoscaler's own figures, in the registry that it is given."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge

from banyan_core.events import ScaleDecided
from banyan_core.policies.scaling_limits import Rule


class AutoscalerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "banyan_autoscaler_decisions",
            "Decisions by role and what came of them: hold, applied or not_applied.",
            ("role", "result"),
            registry=registry,
        )
        self._now = Gauge(
            "banyan_autoscaler_replicas", "Replicas as counted.", ("role",), registry=registry
        )
        self._wanted = Gauge(
            "banyan_autoscaler_wanted_replicas",
            "Replicas as decided.",
            ("role",),
            registry=registry,
        )
        self._figure = Gauge(
            "banyan_autoscaler_figure",
            "What the policy saw: the mean over the replicas that said it.",
            ("role",),
            registry=registry,
        )
        self._target = Gauge(
            "banyan_autoscaler_target",
            "What the policy holds that figure against.",
            ("role",),
            registry=registry,
        )
        self._limited = Gauge(
            "banyan_autoscaler_limited",
            "1 for the limit that holds the wanted number now, 0 for all others.",
            ("role", "by"),
            registry=registry,
        )
        self.actuator_failures = Counter(
            "banyan_autoscaler_actuator_failures",
            "Times that the actuator could not count or set.",
            registry=registry,
        )

    def decided(self, decided: ScaleDecided) -> None:
        """Count one published decision."""
        is_change = decided.num_replicas_now != decided.num_replicas_wanted
        result = "applied" if decided.applied else "not_applied" if is_change else "hold"
        role = decided.role.value
        self._decisions.labels(role, result).inc()
        self._now.labels(role).set(decided.num_replicas_now)
        self._wanted.labels(role).set(decided.num_replicas_wanted)
        self._figure.labels(role).set(_known(decided.figure))
        self._target.labels(role).set(_known(decided.target))
        for rule in Rule:
            self._limited.labels(role, rule.value).set(decided.limited_by == rule)


def _known(value: float | None) -> float:
    return math.nan if value is None else value
