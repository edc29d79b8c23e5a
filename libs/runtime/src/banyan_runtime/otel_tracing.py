"""The real side of `tracing`: OpenTelemetry's SDK with a provider of its own, never the global one.

A global provider would make FastAPI trace itself, a second time and with a span per part. Spans
leave from a thread of the SDK through a bounded queue; a collector that is away costs spans, said
once and counted, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from banyan_runtime.clock import Clock
from banyan_runtime.trace_context import TraceContext
from banyan_runtime.tracing import Attributes, Kind, Span

QUEUE_SPANS = 8192
EXPORT_TIMEOUT_S = 2.0
CLOSE_S = 3.0
_POLL_S = 0.02
_SEND_EVERY_MS = 1000
_BATCH_SPANS = 512
_KINDS = {
    Kind.SERVER: trace.SpanKind.SERVER,
    Kind.CONSUMER: trace.SpanKind.CONSUMER,
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
}


class OtelSpan:
    """An open span, and by how much wall time is ahead of the service's clock."""

    def __init__(self, span: trace.Span, tracer: trace.Tracer, clock: Clock, ahead_ns: int) -> None:
        self._span = span
        self._tracer = tracer
        self._clock = clock
        self._ahead_ns = ahead_ns
        context = span.get_span_context()
        self.context = TraceContext(context.trace_id, context.span_id)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, at_ns: int, attributes: Attributes) -> None:
        self._span.add_event(name, attributes, self._ahead_ns + at_ns)

    def child(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        child = self._tracer.start_span(
            name,
            trace.set_span_in_context(self._span),
            attributes=attributes,
            start_time=self._ahead_ns + start_ns,
        )
        child.end(self._ahead_ns + end_ns)

    def end(self, error: str = "") -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end(self._ahead_ns + self._clock.now_ns())


class OtelTracing:
    """Spans through `processor`. `ratio` of the traces that begin here are recorded.

    `on_close` is called before the last spans are sent.
    """

    is_on = True

    def __init__(
        self,
        clock: Clock,
        service: str,
        instance: str,
        processor: SpanProcessor,
        ratio: float = 1,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._on_close = on_close
        who = {"service.name": f"banyan-{service}", "service.instance.id": instance}
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            resource=Resource.create(who),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("banyan")
        self._clock = clock

    def begin(self, name: str, start_ns: int, traceparent: str | None) -> Span | None:
        parent = TraceContext.parse(traceparent) if traceparent else None
        return self._start(parent, name, start_ns, {}, Kind.SERVER)

    def under(
        self,
        parent: TraceContext | None,
        name: str,
        attributes: Attributes,
        kind: Kind = Kind.SERVER,
    ) -> Span | None:
        if parent is None:
            return None
        return self._start(parent, name, self._clock.now_ns(), attributes, kind)

    def _start(
        self,
        parent: TraceContext | None,
        name: str,
        start_ns: int,
        attributes: Attributes,
        kind: Kind,
    ) -> Span | None:
        ahead_ns = self._clock.unix_ns() - self._clock.now_ns()
        span = self._tracer.start_span(
            name,
            trace.set_span_in_context(_remote(parent), Context()),
            kind=_KINDS[kind],
            attributes=attributes,
            start_time=ahead_ns + start_ns,
        )
        return OtelSpan(span, self._tracer, self._clock, ahead_ns) if span.is_recording() else None

    async def close(self) -> None:
        """The SDK waits for its exporter up to 30 s; nobody waits longer than `CLOSE_S` for it."""
        if self._on_close is not None:
            self._on_close()
        ending = threading.Thread(target=self._provider.shutdown, name="traces end", daemon=True)
        ending.start()
        for _ in range(round(CLOSE_S / _POLL_S)):
            if not ending.is_alive():
                return
            await asyncio.sleep(_POLL_S)


def _remote(parent: TraceContext | None) -> trace.Span:
    if parent is None:
        return trace.INVALID_SPAN
    flags = trace.TraceFlags(parent.sampled)
    return trace.NonRecordingSpan(
        trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
    )


class TellingExporter(SpanExporter):
    """Says once that spans are lost, and once how many were, instead of a line for each try."""

    def __init__(self, exporter: SpanExporter, logger: logging.Logger) -> None:
        self._exporter = exporter
        self._logger = logger
        self._num_lost = 0
        self._is_closing = False

    def close_soon(self) -> None:
        """From now on a collector that is away is not tried again."""
        self._is_closing = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._is_closing and self._num_lost:
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._num_lost:
                self._logger.warning("traces are not taken: spans are dropped until they are")
            self._num_lost += len(spans)
        elif self._num_lost:
            self._logger.info("traces are taken again", extra={"num_lost_spans": self._num_lost})
            self._num_lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def otlp_tracing(
    endpoint: str, ratio: float, clock: Clock, service: str, instance: str, logger: logging.Logger
) -> OtelTracing:
    """Spans to the OTLP collector (gRPC) at `http://HOST:PORT`, or `https://` with TLS."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the exporter below tells it
    exporter = TellingExporter(
        OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S), logger
    )
    processor = BatchSpanProcessor(exporter, QUEUE_SPANS, _SEND_EVERY_MS, _BATCH_SPANS)
    return OtelTracing(clock, service, instance, processor, ratio, exporter.close_soon)
