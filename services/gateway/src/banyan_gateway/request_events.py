"""Tells the bus what became of requests: lengths, durations and reasons, nothing else."""

from __future__ import annotations

from banyan_core.events import GatewayAlive, Payload, RequestAccepted, RequestEnded
from banyan_core.journey_messages import Accepted, RequestRecord
from banyan_runtime.bus import REQUEST_EVENTS, EventProducer
from banyan_runtime.event_codec import payload_to_pb
from banyan_runtime.trace_context import TraceContext, trace_headers

ALIVE_EVERY_S = 1.0
ALIVE_LEASE_NS = 5_000_000_000
MAX_ITL_GAPS = 1000
"""Gaps carried by one event; a longer answer is described by its first ones."""


class RequestEvents:
    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    def accepted(self, fact: Accepted, trace: TraceContext | None = None) -> None:
        self._emit(
            RequestAccepted(
                request_id=fact.request_id,
                tenant=fact.tenant,
                model=fact.model,
                num_prompt_tokens=len(fact.prompt_token_ids),
                stream=fact.stream,
            ),
            trace,
        )

    def ended(self, record: RequestRecord, trace: TraceContext | None = None) -> None:
        self._emit(
            RequestEnded(
                request_id=record.request_id,
                tenant=record.tenant,
                model=record.model,
                outcome=record.outcome,
                reason=record.reason,
                num_prompt_tokens=record.num_prompt_tokens,
                num_cached_tokens=record.num_cached_tokens,
                num_output_tokens=record.num_output_tokens,
                ttft_ns=record.ttft_ns,
                e2e_ns=record.e2e_ns,
                itl_ns=record.itl_ns[:MAX_ITL_GAPS],
                num_recoveries=record.num_recoveries,
                ledger=record.ledger,
                prefill_worker_id=_last_worker(record, "prefill"),
                decode_worker_id=_last_worker(record, "decode"),
                finish_reasons=record.finish_reasons,
            ),
            trace,
        )

    def alive(self, num_requests: int) -> None:
        self._emit(GatewayAlive(num_requests=num_requests, lease_ns=ALIVE_LEASE_NS))

    def _emit(self, payload: Payload, trace: TraceContext | None = None) -> None:
        self._producer.emit(REQUEST_EVENTS, payload_to_pb(payload), trace_headers(trace))


def _last_worker(record: RequestRecord, verb: str) -> str:
    return next((leg.worker_id for leg in reversed(record.legs) if leg.verb == verb), "")
