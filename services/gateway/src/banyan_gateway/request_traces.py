"""One trace per accepted request: its first span here, its stages written when it has ended.

Nothing is added to the token path: the stages come from the ledger, the figures from the record.
Names follow OpenTelemetry's conventions for generative AI. Prompt, answer and tenant's keys never
go into a span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from banyan_core.journey_messages import Place, RequestRecord, StartDecode, StartPrefill
from banyan_core.types import NS_PER_S, Outcome
from banyan_gateway.ports import GenerationRequest
from banyan_runtime.trace_context import TraceContext, in_trace
from banyan_runtime.tracing import Attribute, Span, Tracing

PROVIDER = "banyan"
ROUTES = {"chat": "/v1/chat/completions", "text_completion": "/v1/completions"}

C = TypeVar("C", Place, StartPrefill, StartDecode)


class RequestTraces:
    """The open requests' spans by request id; empty when tracing is off."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[str, Span] = {}

    def begin(self, request: GenerationRequest) -> None:
        if not self._tracing.is_on:
            return
        name = f"{request.operation} {request.model}"
        span = self._tracing.begin(name, request.received_ns, request.traceparent)
        if span is not None:
            span.set(_asked(request))
            self._open[request.request_id] = span

    def context(self, request_id: str) -> TraceContext | None:
        span = self._open.get(request_id)
        return None if span is None else span.context

    def within(self, apply: Callable[[C], None]) -> Callable[[C], None]:
        """`apply` in the trace of its command's request, so that calls made there carry it."""
        if not self._tracing.is_on:
            return apply

        def apply_traced(command: C) -> None:
            with in_trace(self.context(_request_id(command))):
                apply(command)

        return apply_traced

    def ended(self, record: RequestRecord) -> TraceContext | None:
        """Write what became of it. The trace, for whoever else tells of the end."""
        span = self._open.pop(record.request_id, None)
        if span is None:
            return None
        for visit in record.visits:
            span.child(visit.stage.value, visit.start_ns, visit.end_ns, {})
        for loss in record.losses:
            lost = {"banyan.worker.id": loss.worker_id, "banyan.verb": loss.verb}
            span.event("worker lost", loss.at_ns, lost | {"banyan.reason": loss.reason})
        span.set(_became(record))
        span.end(_error(record))
        return span.context


def _request_id(command: Place | StartPrefill | StartDecode) -> str:
    if isinstance(command, Place):
        return command.query.request_id
    return command.spec.request_id


def _error(record: RequestRecord) -> str:
    """The code that the client got; a client that left got none."""
    if record.outcome in (Outcome.FINISHED, Outcome.CANCELLED):
        return ""
    return record.outcome.value if record.shed is None else record.shed.value


def _asked(request: GenerationRequest) -> dict[str, Attribute]:
    sampling = request.sampling
    return {
        "gen_ai.operation.name": request.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": _signed(sampling.seed),
        "gen_ai.request.choice.count": request.n,
        "gen_ai.request.stream": request.stream,
        "gen_ai.response.id": request.request_id,
        "http.request.method": "POST",
        "http.route": ROUTES[request.operation],
        "banyan.tenant": request.tenant,
        "banyan.priority": request.priority,
    }


def _signed(seed: int) -> int:
    """As the client gave it: spans have no numbers of 64 bits without a sign."""
    return seed - 2**64 if seed >= 2**63 else seed


def _became(record: RequestRecord) -> dict[str, Attribute]:
    became: dict[str, Attribute] = {
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_cached_tokens,
        "banyan.outcome": record.outcome.value,
        "banyan.num_recoveries": record.num_recoveries,
    }
    if record.ttft_ns is not None:
        became["gen_ai.response.time_to_first_chunk"] = record.ttft_ns / NS_PER_S
    if record.reason:
        became["banyan.reason"] = record.reason
    return became
