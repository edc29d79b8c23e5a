"""The router's own figures. The registry is passed in, so that several routers fit in a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from banyan_core.cluster import ClusterSnapshot
from banyan_core.placement import Placement
from banyan_core.placer import PlaceDecided
from banyan_core.types import NS_PER_S, Role


class RouterMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._placements = Counter(
            "banyan_router_placements",
            "Decisions by policy and outcome: split, unsplit or refused.",
            ("policy", "outcome"),
            registry=registry,
        )
        self._view_age = Histogram(
            "banyan_router_view_age_seconds",
            "Age of the oldest report that a decision used.",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0),
            registry=registry,
        )
        self._live = Gauge(
            "banyan_router_workers_live", "Workers heard of lately.", ("role",), registry=registry
        )
        lookups = Counter(
            "banyan_router_prefix_lookups",
            "Prompts whose blocks were looked up, by who answered: copy or index.",
            ("source",),
            registry=registry,
        )
        self.copy_lookups = lookups.labels("copy")
        self.index_lookups = lookups.labels("index")
        self.index_misses = Counter(
            "banyan_router_index_unavailable",
            "Decisions made without the index, because it did not answer in time.",
            registry=registry,
        )

    def decided(self, decided: PlaceDecided) -> None:
        if isinstance(decided.outcome, Placement):
            outcome = "unsplit" if decided.outcome.prefill is None else "split"
        else:
            outcome = "refused"
        self._placements.labels(decided.decision.policy, outcome).inc()
        self._view_age.observe(decided.decision.view_age_ns / NS_PER_S)

    def viewed(self, snapshot: ClusterSnapshot) -> None:
        for role in Role:
            live = sum(worker.live for worker in snapshot.workers if worker.ref.role is role)
            self._live.labels(role.value).set(live)
