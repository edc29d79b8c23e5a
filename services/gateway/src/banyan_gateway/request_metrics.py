"""This gateway's requests in Prometheus' words, vLLM's names: open ones, and latencies of finished.

A request is counted once, when it has ended. Its gaps are sorted and the bounds looked up in them,
not the other way round: ten thousand tokens cost 2 ms, a call per gap would cost 13.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from banyan_core.journey_messages import RequestRecord
from banyan_core.latency_buckets import REQUEST_BUCKETS_S, TOKEN_BUCKETS_S, TTFT_BUCKETS_S
from banyan_core.types import NS_PER_S, Outcome


class RequestMetrics(Collector):
    """`count_open` gives the requests that a worker works on, and those that wait for one."""

    def __init__(self, model: str, count_open: Callable[[], tuple[int, int]]) -> None:
        self._model = model
        self._count_open = count_open
        self._ttft = _Durations(
            "vllm:time_to_first_token_seconds", "Request received to first token.", TTFT_BUCKETS_S
        )
        self._itl = _Durations(
            "vllm:inter_token_latency_seconds", "Gap between two tokens.", TOKEN_BUCKETS_S
        )
        self._e2e = _Durations(
            "vllm:e2e_request_latency_seconds", "Request received to its end.", REQUEST_BUCKETS_S
        )

    def ended(self, record: RequestRecord) -> None:
        """Count a request's latencies if it was answered in full."""
        if record.outcome is not Outcome.FINISHED:
            return
        self._ttft.add(() if record.ttft_ns is None else (record.ttft_ns,))
        self._itl.add(record.itl_ns)
        self._e2e.add((record.e2e_ns,))

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        labels = [self._model]
        num_running, num_waiting = self._count_open()
        for name, text, number in (
            ("vllm:num_requests_running", "Requests that a worker works on.", num_running),
            ("vllm:num_requests_waiting", "Requests that wait for a worker.", num_waiting),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric(labels, number)
            yield gauge
        for durations in (self._ttft, self._itl, self._e2e):
            yield durations.metric(labels)


class _Durations:
    """A histogram that takes many values at once. Values in ns, `bounds_s` in rising order."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._texts = [str(bound) for bound in bounds_s]
        self._bounds_ns = [round(bound * NS_PER_S) for bound in bounds_s]
        self._num_within = [0] * len(bounds_s)
        self._num = 0
        self._sum_ns = 0

    def add(self, values_ns: Sequence[int]) -> None:
        ordered = sorted(values_ns)
        for place, bound in enumerate(self._bounds_ns):
            self._num_within[place] += bisect_right(ordered, bound)
        self._num += len(ordered)
        self._sum_ns += sum(ordered)

    def metric(self, labels: Sequence[str]) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        buckets = [*zip(self._texts, map(float, self._num_within), strict=True)]
        buckets.append(("+Inf", float(self._num)))
        family.add_metric(labels, buckets, self._sum_ns / NS_PER_S)
        return family
