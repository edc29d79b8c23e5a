"""Figures that are a state rather than a count, read when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from banyan_core.types import NS_PER_S

if TYPE_CHECKING:
    from banyan_metrics.service import MetricsService

WINDOW_NS = 300 * NS_PER_S
_WORKER_LABELS = ("model_name", "worker_id", "role")
_PAIR_LABELS = ("model_name", "tenant")


class StateCollector(Collector):
    """Goodput and attainment over five minutes, load of workers, scale, losses of events."""

    def __init__(self, service: MetricsService) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []  # names are only known by asking, which needs no state yet at registration

    def collect(self) -> Iterable[Metric]:
        yield from self._slo()
        yield from self._workers()
        yield from self._events()
        wanted = GaugeMetricFamily(
            "banyan_scale_wanted_replicas", "last decided number of replicas", labels=("role",)
        )
        last = {r.decided.role: r.decided for r in reversed(self._service.scale_decisions())}
        for role in sorted(last):
            wanted.add_metric((role.value,), last[role].num_replicas_wanted)
        yield wanted

    def _slo(self) -> Iterable[Metric]:
        attainment = GaugeMetricFamily(
            "banyan_slo_attainment_ratio",
            "share of requests that met all targets, 5 min",
            labels=_PAIR_LABELS,
        )
        goodput = GaugeMetricFamily(
            "banyan_goodput_requests_per_second",
            "requests that met all targets, 5 min",
            labels=_PAIR_LABELS,
        )
        for figures in self._service.slo(WINDOW_NS)[1]:
            labels = (figures.model, figures.tenant)
            goodput.add_metric(labels, figures.goodput)
            if figures.attainment is not None:
                attainment.add_metric(labels, figures.attainment)
        yield from (attainment, goodput)

    def _workers(self) -> Iterable[Metric]:
        running, waiting, usage = (
            GaugeMetricFamily(name, text, labels=_WORKER_LABELS)
            for name, text in (
                ("vllm:num_requests_running", "sequences in engine steps"),
                ("vllm:num_requests_waiting", "sequences admitted, not yet in a step"),
                ("vllm:kv_cache_usage_perc", "share of KV blocks in use, 1 is all"),
            )
        )
        for worker in self._service.workers():
            if worker.state != "alive":
                continue
            ref = worker.said.worker
            labels = (worker.said.model, ref.worker_id, ref.role.value)
            running.add_metric(labels, worker.said.load.num_running)
            waiting.add_metric(labels, worker.said.load.num_waiting)
            usage.add_metric(labels, worker.kv_usage)
        yield from (running, waiting, usage)

    def _events(self) -> Iterable[Metric]:
        missing = CounterMetricFamily(
            "banyan_events_missing", "numbered events that never came", labels=("topic",)
        )
        for topic, count in self._service.missing_events().items():
            missing.add_metric((topic,), count)
        unreadable = CounterMetricFamily("banyan_events_unreadable", "records that broke a rule")
        unreadable.add_metric((), self._service.num_unreadable)
        late = CounterMetricFamily(
            "banyan_request_late_ends", "ends that came after another had been given"
        )
        late.add_metric((), self._service.num_late_ends)
        still_open = GaugeMetricFamily("banyan_requests_open", "accepted, without an end")
        still_open.add_metric((), len(self._service.open_requests()))
        yield from (missing, unreadable, late, still_open)
