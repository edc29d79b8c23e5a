"""The gateway's own figures of requests: what is counted, when, and in which bucket."""

from __future__ import annotations

import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from banyan_core.journey_messages import RequestRecord
from banyan_core.types import NS_PER_MS, Outcome
from banyan_gateway.request_metrics import QueueFigures, RequestMetrics

LABELS = {"model_name": "m"}
ANSWERED = RequestRecord(
    request_id="r",
    tenant="t",
    model="m",
    outcome=Outcome.FINISHED,
    reason="",
    num_prompt_tokens=10,
    num_cached_tokens=0,
    num_output_tokens=5,
    ttft_ns=10 * NS_PER_MS,
    e2e_ns=900 * NS_PER_MS,
    itl_ns=(9 * NS_PER_MS, 10 * NS_PER_MS, 11 * NS_PER_MS, 200_000 * NS_PER_MS),
    num_recoveries=0,
    ledger=(),
    decisions=(),
    legs=(),
    finish_reasons=("stop",),
)


class Exposed:
    """Figures in a registry of their own; `now` is what the gateway would say."""

    def __init__(self) -> None:
        self.now = QueueFigures(0, 0, None, 10)
        self.registry = CollectorRegistry()
        self.metrics = RequestMetrics("m", lambda: self.now)
        self.registry.register(self.metrics)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"vllm:{name}", LABELS | labels)


def test_gauges_are_read_when_scraped() -> None:
    exposed = Exposed()
    assert exposed.value("num_requests_running") == 0
    exposed.now = QueueFigures(3, 2, None, 10)
    assert exposed.value("num_requests_running") == 3
    assert exposed.value("num_requests_waiting") == 2


def test_a_value_on_a_bound_is_within_it_and_counts_add_up() -> None:
    exposed = Exposed()
    exposed.metrics.ended(ANSWERED)
    gaps = "inter_token_latency_seconds"
    assert exposed.value(f"{gaps}_bucket", le="0.01") == 2
    assert exposed.value(f"{gaps}_bucket", le="0.025") == 3
    assert exposed.value(f"{gaps}_bucket", le="80.0") == 3
    assert exposed.value(f"{gaps}_bucket", le="+Inf") == 4
    assert exposed.value(f"{gaps}_sum") == 200.03
    exposed.metrics.ended(ANSWERED)
    assert exposed.value(f"{gaps}_bucket", le="0.01") == 4
    assert exposed.value(f"{gaps}_count") == 8
    assert exposed.value("time_to_first_token_seconds_bucket", le="0.01") == 2
    assert exposed.value("time_to_first_token_seconds_bucket", le="0.005") == 0
    assert exposed.value("e2e_request_latency_seconds_bucket", le="1.0") == 2
    assert exposed.value("e2e_request_latency_seconds_bucket", le="0.8") == 0


def test_only_full_answers_have_latencies() -> None:
    exposed = Exposed()
    for outcome in (Outcome.FAILED, Outcome.CANCELLED, Outcome.SHED):
        exposed.metrics.ended(dataclasses.replace(ANSWERED, outcome=outcome))
    assert exposed.value("e2e_request_latency_seconds_count") == 0
    assert exposed.value("inter_token_latency_seconds_count") == 0
    exposed.metrics.ended(dataclasses.replace(ANSWERED, ttft_ns=None, itl_ns=()))
    assert exposed.value("e2e_request_latency_seconds_count") == 1
    assert exposed.value("time_to_first_token_seconds_count") == 0


def test_phases_are_those_of_vllm() -> None:
    exposed = Exposed()
    parts = {"tokenize": 1, "queue": 2, "place": 1, "prefill_queue": 1, "prefill_compute": 5}
    ledger = tuple((part, duration * NS_PER_MS) for part, duration in parts.items())
    exposed.metrics.ended(dataclasses.replace(ANSWERED, ledger=ledger))
    sums = {
        phase: exposed.value(f"request_{phase}_time_seconds_sum")
        for phase in ("queue", "prefill", "decode", "inference")
    }
    assert sums == {"queue": 0.004, "prefill": 0.005, "decode": 0.89, "inference": 0.895}


def test_every_end_is_counted_with_its_tokens() -> None:
    exposed = Exposed()
    exposed.metrics.ended(ANSWERED)
    exposed.metrics.ended(dataclasses.replace(ANSWERED, finish_reasons=("length",)))
    exposed.metrics.ended(dataclasses.replace(ANSWERED, outcome=Outcome.CANCELLED))
    unserved = dataclasses.replace(ANSWERED, ttft_ns=None, num_output_tokens=0)
    exposed.metrics.ended(dataclasses.replace(unserved, outcome=Outcome.SHED))
    counted = {
        reason: exposed.value("request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    assert counted == {"stop": 1, "length": 1, "abort": 1, "error": 1}
    assert exposed.value("prompt_tokens_total") == 30
    assert exposed.value("generation_tokens_total") == 15


def test_the_text_is_what_prometheus_reads() -> None:
    exposed = Exposed()
    exposed.metrics.ended(ANSWERED)
    text = generate_latest(exposed.registry).decode()
    assert "# TYPE vllm:inter_token_latency_seconds histogram" in text
    assert 'vllm:inter_token_latency_seconds_bucket{le="0.01",model_name="m"} 2.0' in text
    assert "# TYPE vllm:num_requests_running gauge" in text
