"""The figures in Prometheus' words: vLLM's names where one exists, `banyan_*` for what is ours.

Labels are bounded: past `MAX_PAIRS` pairs of tenant and model the rest are counted as "other".
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from banyan_core.events import RequestEnded
from banyan_core.latency_buckets import REQUEST_BUCKETS_S, TOKEN_BUCKETS_S, TTFT_BUCKETS_S
from banyan_core.slo import tpot_ns
from banyan_core.types import NS_PER_S, Outcome

MAX_PAIRS = 32
OTHER = "other"
PAIR_LABELS = ("model_name", "tenant")


class RequestExposition:
    """Counts ended requests into the registry that it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._pairs: dict[tuple[str, str], None] = {}
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "request received to first token", TTFT_BUCKETS_S
        )
        self._itl = self._histogram(
            "vllm:inter_token_latency_seconds", "gap between two tokens", TOKEN_BUCKETS_S
        )
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "(E2E - TTFT) / (output tokens - 1) of a request",
            TOKEN_BUCKETS_S,
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "request received to its end", REQUEST_BUCKETS_S
        )
        self._prompt = self._counter("vllm:prompt_tokens", "prompt tokens of ended requests")
        self._cached = self._counter(
            "vllm:prompt_tokens_cached", "prompt tokens that no engine step computed"
        )
        self._output = self._counter("vllm:generation_tokens", "output tokens of ended requests")
        self._success = self._counter(
            "vllm:request_success", "ended requests by reason", "finished_reason"
        )
        self._outcomes = self._counter(
            "banyan_requests", "accepted requests by their one terminal state", "outcome"
        )
        self._judged = self._counter("banyan_slo_judged_requests", "requests with a verdict")
        self._met = self._counter("banyan_slo_met_requests", "requests that met all targets")
        self._recoveries = self._counter(
            "banyan_request_recoveries", "times that work was placed again after a loss"
        )
        self._ledger = self._counter(
            "banyan_request_ledger_seconds", "where requests spent their time", "part"
        )
        self._unheard = self._counter(
            "banyan_requests_end_not_heard", "requests whose end was lost with an event"
        )

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, PAIR_LABELS, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*PAIR_LABELS, *labels), registry=self._registry)

    def _labels(self, ended: RequestEnded) -> tuple[str, str]:
        """Label values `(model_name, tenant)`, a bounded number of them for ever."""
        pair = (ended.model, ended.tenant)
        if pair in self._pairs:
            return pair
        if len(self._pairs) >= MAX_PAIRS:
            return (OTHER, OTHER)
        self._pairs[pair] = None
        return pair

    def count(self, ended: RequestEnded, met: bool | None) -> None:
        """Count one told end."""
        pair = self._labels(ended)
        self._outcomes.labels(*pair, ended.outcome.value).inc()
        self._prompt.labels(*pair).inc(ended.num_prompt_tokens)
        self._cached.labels(*pair).inc(ended.num_cached_tokens)
        self._output.labels(*pair).inc(ended.num_output_tokens)
        self._recoveries.labels(*pair).inc(ended.num_recoveries)
        self._judged.labels(*pair).inc(met is not None)
        self._met.labels(*pair).inc(met is True)
        for part, duration in ended.ledger:
            self._ledger.labels(*pair, part).inc(duration / NS_PER_S)
        if ended.outcome is Outcome.FINISHED:
            reason = ended.finish_reasons[0] if ended.finish_reasons else "stop"
            self._success.labels(*pair, reason).inc()
            self._observe(pair, ended)
        elif ended.outcome is Outcome.CANCELLED:
            self._success.labels(*pair, "abort").inc()

    def _observe(self, pair: tuple[str, str], ended: RequestEnded) -> None:
        self._e2e.labels(*pair).observe(ended.e2e_ns / NS_PER_S)
        if ended.ttft_ns is not None:
            self._ttft.labels(*pair).observe(ended.ttft_ns / NS_PER_S)
        tpot = tpot_ns(ended.ttft_ns, ended.e2e_ns, ended.num_output_tokens)
        if tpot is not None:
            self._tpot.labels(*pair).observe(tpot / NS_PER_S)
        gaps = self._itl.labels(*pair)
        for gap in ended.itl_ns:
            gaps.observe(gap / NS_PER_S)

    def count_unheard(self, ended: RequestEnded) -> None:
        """Count one request whose end never came."""
        self._unheard.labels(*self._labels(ended)).inc()
