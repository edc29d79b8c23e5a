"""This gateway's requests in Prometheus' words, vLLM's names: open ones, and latencies of finished.

A request is counted once, when it has ended. Its gaps are sorted and the bounds looked up in them,
not the other way round: ten thousand tokens cost 2 ms, a call per gap would cost 13.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from banyan_core.journey_messages import RequestRecord
from banyan_core.latency_buckets import REQUEST_BUCKETS_S, TOKEN_BUCKETS_S, TTFT_BUCKETS_S
from banyan_core.types import NS_PER_S, Outcome, ShedReason

WAIT_TEXT = "How long a request that came last now would wait; absent while that is not known."
BUDGET_TEXT = "Retries after losses that the gateway may make at once."
# Turned away before they were requests: the gateway holds as many as it may, or cannot keep up.
TOO_MANY_OPEN = "too_many_open"
TOO_LATE = "begun_too_late"


class QueueFigures(NamedTuple):
    """Requests that a worker works on, those that wait for one, how long the next would wait
    (None: not known), and what is left of the retry budget."""

    num_running: int
    num_waiting: int
    expected_wait_s: float | None
    num_retries_left: int


class RequestMetrics(Collector):
    def __init__(self, model: str, look: Callable[[], QueueFigures]) -> None:
        self._model = model
        self._look = look
        reasons = (*(reason.value for reason in ShedReason), TOO_MANY_OPEN, TOO_LATE)
        self._num_shed = dict.fromkeys(reasons, 0)
        self._ttft = _Durations(
            "vllm:time_to_first_token_seconds", "Request received to first token.", TTFT_BUCKETS_S
        )
        self._itl = _Durations(
            "vllm:inter_token_latency_seconds", "Gap between two tokens.", TOKEN_BUCKETS_S
        )
        self._e2e = _Durations(
            "vllm:e2e_request_latency_seconds", "Request received to its end.", REQUEST_BUCKETS_S
        )
        self._phases = {
            "queue": _phase("queue", "Waited: here, for an answer, in a worker's queue."),
            "prefill": _phase("prefill", "Its prompt was worked on, up to the first token."),
            "decode": _phase("decode", "First token to its end."),
            "inference": _phase("inference", "Prefill and decode."),
        }
        self._num_prompt_tokens = self._num_output_tokens = 0
        self._num_by_reason = dict.fromkeys(("stop", "length", "abort", "error"), 0)

    def ended(self, record: RequestRecord) -> None:
        """Count its tokens and its end, and its latencies if it was answered in full."""
        if record.ttft_ns is not None:
            self._num_prompt_tokens += record.num_prompt_tokens
        self._num_output_tokens += record.num_output_tokens
        self._num_by_reason[_finished_reason(record)] += 1
        if record.shed is not None:
            self._num_shed[record.shed.value] += 1
        if record.outcome is not Outcome.FINISHED:
            return
        for phase, duration in _phases_ns(record).items():
            self._phases[phase].add((duration,))
        self._ttft.add(() if record.ttft_ns is None else (record.ttft_ns,))
        self._itl.add(record.itl_ns)
        self._e2e.add((record.e2e_ns,))

    def turned_away(self, reason: str) -> None:
        """Past the bound of open requests, or of the wait to begin."""
        self._num_shed[reason] += 1

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        labels = [self._model]
        now = self._look()
        for name, text, number in (
            ("vllm:num_requests_running", "Requests that a worker works on.", now.num_running),
            ("vllm:num_requests_waiting", "Requests that wait for a worker.", now.num_waiting),
            ("banyan_gateway_queue_expected_wait_seconds", WAIT_TEXT, now.expected_wait_s),
            ("banyan_gateway_retry_budget_requests", BUDGET_TEXT, now.num_retries_left),
        ):
            if number is None:
                continue
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric(labels, number)
            yield gauge
        for durations in (self._ttft, self._itl, self._e2e, *self._phases.values()):
            yield durations.metric(labels)
        yield from self._counts(labels)

    def _counts(self, labels: Sequence[str]) -> Iterator[Metric]:
        for name, text, number in (
            ("vllm:prompt_tokens", "Prompt tokens of answered requests.", self._num_prompt_tokens),
            ("vllm:generation_tokens", "Output tokens.", self._num_output_tokens),
        ):
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric(labels, number)
            yield counter
        success = CounterMetricFamily(
            "vllm:request_success", "Ended requests.", labels=["model_name", "finished_reason"]
        )
        for reason, number in self._num_by_reason.items():
            success.add_metric([*labels, reason], number)
        yield success
        shed = CounterMetricFamily(
            "banyan_gateway_shed_requests",
            "Requests turned away or given up before their first token.",
            labels=["model_name", "reason"],
        )
        for reason, number in self._num_shed.items():
            shed.add_metric([*labels, reason], number)
        yield shed


def _finished_reason(record: RequestRecord) -> str:
    """In vLLM's words: abort is the client's will, error is ours."""
    if record.outcome is Outcome.FINISHED:
        return "length" if "length" in record.finish_reasons else "stop"
    return "abort" if record.outcome is Outcome.CANCELLED else "error"


def _phases_ns(record: RequestRecord) -> dict[str, int]:
    """vLLM's phases, out of the ledger: what is before the first token is queue or prefill.

    Text to tokens is neither, as in vLLM, whose request arrives when that is done.
    """
    parts = dict(record.ledger)
    ttft = record.e2e_ns if record.ttft_ns is None else record.ttft_ns
    waited = sum(parts.get(part, 0) for part in ("queue", "place", "dispatch", "prefill_queue"))
    before = max(0, ttft - parts.get("tokenize", 0))
    queue, decode = min(waited, before), record.e2e_ns - ttft
    prefill = before - queue
    return {"queue": queue, "prefill": prefill, "decode": decode, "inference": prefill + decode}


def _phase(name: str, text: str) -> _Durations:
    return _Durations(f"vllm:request_{name}_time_seconds", text, REQUEST_BUCKETS_S)


class _Durations:
    """A histogram that takes many values at once. Values in ns, `bounds_s` in rising order."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._texts = [str(bound) for bound in bounds_s]
        self._bounds_ns = [round(bound * NS_PER_S) for bound in bounds_s]
        self._num_between = [0] * (len(bounds_s) + 1)  # not summed up; the last is past all bounds
        self._sum_ns = 0

    def add(self, values_ns: Sequence[int]) -> None:
        if len(values_ns) < len(self._bounds_ns):
            for value in values_ns:
                self._num_between[bisect_left(self._bounds_ns, value)] += 1
        else:
            self._add_many(sorted(values_ns))
        self._sum_ns += sum(values_ns)

    def _add_many(self, ordered: Sequence[int]) -> None:
        num_before = 0
        for place, bound in enumerate(self._bounds_ns):
            num_within = bisect_right(ordered, bound)
            self._num_between[place] += num_within - num_before
            num_before = num_within
        self._num_between[-1] += len(ordered) - num_before

    def metric(self, labels: Sequence[str]) -> Metric:
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        texts = (*self._texts, "+Inf")
        buckets = list(zip(texts, map(float, accumulate(self._num_between)), strict=True))
        family.add_metric(labels, buckets, self._sum_ns / NS_PER_S)
        return family
