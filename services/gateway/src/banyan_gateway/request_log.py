"""What is remembered of ended requests, for `/v1/requests/{id}`: bounded, no text, no token ids.

Kept as JSON bytes: a thousand records as objects are most of what a full garbage collection of the
gateway walks through, while every stream stands still.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import msgspec

from banyan_core.journey_messages import RequestRecord
from banyan_core.placement import Decision
from banyan_core.types import NS_PER_MS, Outcome, ShedReason
from banyan_gateway.ports import Unread
from banyan_runtime.trace_context import TraceContext

MAX_RECORDS = 1000


class RequestLog:
    """The last records, oldest out first."""

    def __init__(self) -> None:
        self._views: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, record: RequestRecord, trace: TraceContext | None) -> None:
        view = record_view(record, record.outcome.value, trace)
        self._views[record.request_id] = msgspec.json.encode(view)
        if len(self._views) > MAX_RECORDS:
            self._views.popitem(last=False)

    def view(self, request_id: str) -> dict[str, Any] | None:
        view = self._views.get(request_id)
        return None if view is None else cast(dict[str, Any], msgspec.json.decode(view))


def record_view(record: RequestRecord, state: str, trace: TraceContext | None) -> dict[str, Any]:
    """A record as JSON for people: milliseconds, every candidate with its scores, the reasons."""
    return {
        "id": record.request_id,
        "trace_id": None if trace is None else trace.trace_id_hex,
        "state": state,
        "reason": record.reason,
        "shed": None if record.shed is None else record.shed.value,
        "tenant": record.tenant,
        "model": record.model,
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_cached_tokens": record.num_cached_tokens,
        "num_output_tokens": record.num_output_tokens,
        "finish_reasons": list(record.finish_reasons),
        "num_recoveries": record.num_recoveries,
        "ttft_ms": None if record.ttft_ns is None else record.ttft_ns / NS_PER_MS,
        "e2e_ms": record.e2e_ns / NS_PER_MS,
        "ledger_ms": {part: duration / NS_PER_MS for part, duration in record.ledger},
        "workers": [
            {
                "sequence_id": leg.sequence_id,
                "worker_id": leg.worker_id,
                "verb": leg.verb,
                "end": leg.end,
            }
            for leg in record.legs
        ],
        "placements": [_decision_view(decision) for decision in record.decisions],
    }


def unread_record(
    unread: Unread, model: str, now: int, shed: ShedReason, message: str
) -> RequestRecord:
    """The end of a request that was shed before anything was counted of it."""
    return RequestRecord(
        request_id=unread.request_id,
        tenant=unread.tenant,
        model=model,
        outcome=Outcome.SHED,
        reason=message,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_output_tokens=0,
        ttft_ns=None,
        e2e_ns=now - unread.received_ns,
        itl_ns=(),
        num_recoveries=0,
        ledger=(),
        decisions=(),
        legs=(),
        finish_reasons=(),
        shed=shed,
    )


def queue_view(place: tuple[int, int | None] | None) -> dict[str, Any]:
    """Where an open request waits: how many go before it, and how long that may take."""
    if place is None:
        return {"queue": None}
    num_ahead, wait_ns = place
    expected_ms = None if wait_ns is None else wait_ns / NS_PER_MS
    return {"queue": {"num_ahead": num_ahead, "expected_wait_ms": expected_ms}}


def _decision_view(decision: Decision) -> dict[str, Any]:
    return {
        "policy": decision.policy,
        "number": decision.number,
        "reason": decision.reason,
        "view_age_ms": decision.view_age_ns / NS_PER_MS,
        "candidates": [
            {
                "worker_id": candidate.worker_id,
                "role": candidate.role.value,
                "filtered": candidate.filtered,
                "total": candidate.total,
                "scores": {
                    score.name: {"value": score.value, "weight": score.weight}
                    for score in candidate.scores
                },
            }
            for candidate in decision.candidates
        ],
    }
