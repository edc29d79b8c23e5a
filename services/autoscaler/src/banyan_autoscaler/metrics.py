"""The autoscaler's own figures, in the registry that it is given."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from banyan_core.events import ScaleDecided


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
        self.actuator_failures = Counter(
            "banyan_autoscaler_actuator_failures",
            "Times that the actuator could not count or set.",
            registry=registry,
        )

    def decided(self, decided: ScaleDecided) -> None:
        """Count one published decision."""
        is_change = decided.num_replicas_now != decided.num_replicas_wanted
        result = "applied" if decided.applied else "not_applied" if is_change else "hold"
        self._decisions.labels(decided.role.value, result).inc()
        self._now.labels(decided.role.value).set(decided.num_replicas_now)
        self._wanted.labels(decided.role.value).set(decided.num_replicas_wanted)
