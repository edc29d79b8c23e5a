"""What tracing costs the gateway for one request: microseconds of the event loop, and in all.

    python load-tests/tracing_cost.py

A split request with five stages: its span begins, three calls carry it, its stages are written at
the end. "In all" adds the SDK's thread, which encodes what it would send.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from banyan_core.journey_messages import Place, RequestRecord
from banyan_core.ledger import Stage, Visit
from banyan_core.placement import PlaceQuery
from banyan_core.types import Outcome, SamplingParams
from banyan_gateway.ports import GenerationRequest
from banyan_gateway.request_traces import RequestTraces
from banyan_runtime.clock import SystemClock
from banyan_runtime.otel_tracing import OtelTracing
from banyan_runtime.trace_context import current_trace
from banyan_runtime.tracing import NO_TRACING, Tracing

NUM_REQUESTS = 20_000
STAGES = (Stage.TOKENIZE, Stage.PLACE, Stage.DISPATCH, Stage.PREFILL, Stage.DECODE)
REQUEST = GenerationRequest(
    request_id="chatcmpl-0123456789abcdef",
    tenant="t",
    share_group="tenant/t",
    model="m",
    prompt_token_ids=(1, 2, 3),
    sampling=SamplingParams(),
    n=1,
    stop=(),
    include_stop=False,
    cache_salt="",
    priority=0,
    stream=True,
    deadline_ns=None,
    received_ns=0,
)
RECORD = RequestRecord(
    request_id=REQUEST.request_id,
    tenant="t",
    model="m",
    outcome=Outcome.FINISHED,
    reason="",
    num_prompt_tokens=512,
    num_cached_tokens=256,
    num_output_tokens=128,
    ttft_ns=30_000_000,
    e2e_ns=900_000_000,
    itl_ns=(),
    num_recoveries=0,
    ledger=(),
    decisions=(),
    legs=(),
    finish_reasons=("stop",),
    visits=tuple(Visit(stage, 0, 1) for stage in STAGES),
)
PLACE = Place(PlaceQuery(REQUEST.request_id, 0, 1, b"", (), 3, 0, 16))


class Encoder(SpanExporter):
    """Does all but send."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def carry(command: Place) -> None:
    """What a call does with the trace that it is made in."""
    str(current_trace())


def measure(name: str, tracing: Tracing, drain: BatchSpanProcessor | None) -> None:
    traces = RequestTraces(tracing)
    call = traces.within(carry)
    spent = 0.0
    started_cpu = time.process_time()
    for number in range(NUM_REQUESTS):
        started = time.thread_time()
        traces.begin(REQUEST)
        for _ in range(3):
            call(PLACE)
        traces.ended(RECORD)
        spent += time.thread_time() - started
        if drain is not None and number % 500 == 499:
            drain.force_flush()
    cpu = time.process_time() - started_cpu
    per = 1e6 / NUM_REQUESTS
    print(f"{name}: {spent * per:.1f} us of the event loop, {cpu * per:.1f} us of CPU in all")


def main() -> None:
    measure("off", NO_TRACING, None)
    processor = BatchSpanProcessor(Encoder(), 8192, 1000, 512)
    clock = SystemClock()
    measure("on", OtelTracing(clock, "gateway", "g", processor), processor)
    unused = BatchSpanProcessor(Encoder())
    measure("on, 1 % recorded", OtelTracing(clock, "gateway", "g", unused, 0.01), unused)


if __name__ == "__main__":
    main()
