"""A request's end as its client is told of it, when it is no answer."""

from __future__ import annotations

from banyan_core.journey_messages import EndRequest
from banyan_core.types import NS_PER_S, ShedReason
from banyan_gateway.ports import RequestFailed


def failure_of(command: EndRequest) -> RequestFailed:
    """429: its class has its share already. 400: it can never be served. 503: nothing could be
    done for it now."""
    record = command.record
    retry_after_s = command.retry_after_ns / NS_PER_S if command.retryable else None
    status = 503 if command.retryable else 500
    if record.shed is ShedReason.QUEUE_FULL:
        status = 429
    elif record.shed is ShedReason.TOO_LARGE:
        status, retry_after_s = 400, None
    code = record.outcome.value if record.shed is None else record.shed.value
    return RequestFailed(code, record.reason, retry_after_s, status)
