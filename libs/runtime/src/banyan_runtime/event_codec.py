"""Events between the wire and core. News of KV blocks is not among them: it has its own fold.

`payload_to_pb` leaves the envelope to `EventProducer`, which stamps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from banyan.v1 import events_pb2
from banyan_core.events import (
    Event,
    GatewayAlive,
    Payload,
    RequestAccepted,
    RequestEnded,
    ScaleDecided,
    WorkerAlive,
    WorkerGone,
)
from banyan_core.types import Outcome
from banyan_runtime.codec import (
    role_from_pb,
    role_to_pb,
    worker_load_from_pb,
    worker_load_to_pb,
    worker_ref_from_pb,
    worker_ref_to_pb,
)

_OUTCOME_TO_PB = {
    Outcome.FINISHED: events_pb2.OUTCOME_FINISHED,
    Outcome.FAILED: events_pb2.OUTCOME_FAILED,
    Outcome.CANCELLED: events_pb2.OUTCOME_CANCELLED,
    Outcome.SHED: events_pb2.OUTCOME_SHED,
}
_OUTCOME_FROM_PB = {number: outcome for outcome, number in _OUTCOME_TO_PB.items()}


def event_from_pb(message: events_pb2.Event) -> Event | None:
    """None for news of KV blocks. Raises ValueError naming a field that breaks a rule."""
    kind = message.WhichOneof("payload")
    decoder = _DECODERS.get(kind or "")
    if decoder is None:
        return None
    return Event(
        message.producer,
        message.epoch,
        message.seq,
        message.time_unix_ns,
        decoder(getattr(message, str(kind))),
    )


def payload_to_pb(payload: Payload) -> events_pb2.Event:
    """An event without its envelope."""
    name, encoder = _ENCODERS[type(payload)]
    return events_pb2.Event(**{name: encoder(payload)})


# ---------------------------------------------------------------- requests


def _accepted_to_pb(payload: RequestAccepted) -> events_pb2.RequestAccepted:
    return events_pb2.RequestAccepted(
        request_id=payload.request_id,
        tenant=payload.tenant,
        model=payload.model,
        num_prompt_tokens=payload.num_prompt_tokens,
        stream=payload.stream,
    )


def _accepted_from_pb(message: events_pb2.RequestAccepted) -> RequestAccepted:
    return RequestAccepted(
        message.request_id,
        message.tenant,
        message.model,
        message.num_prompt_tokens,
        message.stream,
    )


def _ended_to_pb(payload: RequestEnded) -> events_pb2.RequestEnded:
    return events_pb2.RequestEnded(
        request_id=payload.request_id,
        tenant=payload.tenant,
        model=payload.model,
        outcome=_OUTCOME_TO_PB[payload.outcome],
        reason=payload.reason,
        num_prompt_tokens=payload.num_prompt_tokens,
        num_cached_tokens=payload.num_cached_tokens,
        num_output_tokens=payload.num_output_tokens,
        ttft_ns=payload.ttft_ns,
        e2e_ns=payload.e2e_ns,
        itl_ns=payload.itl_ns,
        num_recoveries=payload.num_recoveries,
        ledger=[
            events_pb2.LedgerPart(part=part, duration_ns=duration)
            for part, duration in payload.ledger
        ],
        prefill_worker_id=payload.prefill_worker_id,
        decode_worker_id=payload.decode_worker_id,
        finish_reasons=payload.finish_reasons,
    )


def _ended_from_pb(message: events_pb2.RequestEnded) -> RequestEnded:
    if message.outcome not in _OUTCOME_FROM_PB:
        raise ValueError(f"outcome: {message.outcome} is not a known outcome")
    return RequestEnded(
        request_id=message.request_id,
        tenant=message.tenant,
        model=message.model,
        outcome=_OUTCOME_FROM_PB[message.outcome],
        reason=message.reason,
        num_prompt_tokens=message.num_prompt_tokens,
        num_cached_tokens=message.num_cached_tokens,
        num_output_tokens=message.num_output_tokens,
        ttft_ns=message.ttft_ns if message.HasField("ttft_ns") else None,
        e2e_ns=message.e2e_ns,
        itl_ns=tuple(message.itl_ns),
        num_recoveries=message.num_recoveries,
        ledger=tuple((entry.part, entry.duration_ns) for entry in message.ledger),
        prefill_worker_id=message.prefill_worker_id,
        decode_worker_id=message.decode_worker_id,
        finish_reasons=tuple(message.finish_reasons),
    )


def _gateway_alive_to_pb(payload: GatewayAlive) -> events_pb2.GatewayAlive:
    return events_pb2.GatewayAlive(num_requests=payload.num_requests, lease_ns=payload.lease_ns)


def _gateway_alive_from_pb(message: events_pb2.GatewayAlive) -> GatewayAlive:
    return GatewayAlive(message.num_requests, message.lease_ns)


# ---------------------------------------------------------------- workers and scale


def _worker_alive_to_pb(payload: WorkerAlive) -> events_pb2.WorkerAlive:
    return events_pb2.WorkerAlive(
        worker=worker_ref_to_pb(payload.worker),
        model=payload.model,
        num_blocks=payload.num_blocks,
        load=worker_load_to_pb(payload.load),
        lease_ns=payload.lease_ns,
    )


def _worker_alive_from_pb(message: events_pb2.WorkerAlive) -> WorkerAlive:
    return WorkerAlive(
        worker_ref_from_pb(message.worker),
        message.model,
        message.num_blocks,
        worker_load_from_pb(message.load),
        message.lease_ns,
    )


def _worker_gone_to_pb(payload: WorkerGone) -> events_pb2.WorkerGone:
    return events_pb2.WorkerGone(worker=worker_ref_to_pb(payload.worker), reason=payload.reason)


def _worker_gone_from_pb(message: events_pb2.WorkerGone) -> WorkerGone:
    return WorkerGone(worker_ref_from_pb(message.worker), message.reason)


def _scale_decided_to_pb(payload: ScaleDecided) -> events_pb2.ScaleDecided:
    return events_pb2.ScaleDecided(
        role=role_to_pb(payload.role),
        num_replicas_now=payload.num_replicas_now,
        num_replicas_wanted=payload.num_replicas_wanted,
        policy=payload.policy,
        reason=payload.reason,
        actuator=payload.actuator,
        applied=payload.applied,
        figure=payload.figure,
        target=payload.target,
        limited_by=payload.limited_by,
    )


def _scale_decided_from_pb(message: events_pb2.ScaleDecided) -> ScaleDecided:
    return ScaleDecided(
        role_from_pb(message.role),
        message.num_replicas_now,
        message.num_replicas_wanted,
        message.policy,
        message.reason,
        message.actuator,
        message.applied,
        message.figure if message.HasField("figure") else None,
        message.target if message.HasField("target") else None,
        message.limited_by,
    )


_DECODERS: dict[str, Callable[[Any], Payload]] = {
    "request_accepted": _accepted_from_pb,
    "request_ended": _ended_from_pb,
    "gateway_alive": _gateway_alive_from_pb,
    "worker_alive": _worker_alive_from_pb,
    "worker_gone": _worker_gone_from_pb,
    "scale_decided": _scale_decided_from_pb,
}
_ENCODERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    RequestAccepted: ("request_accepted", _accepted_to_pb),
    RequestEnded: ("request_ended", _ended_to_pb),
    GatewayAlive: ("gateway_alive", _gateway_alive_to_pb),
    WorkerAlive: ("worker_alive", _worker_alive_to_pb),
    WorkerGone: ("worker_gone", _worker_gone_to_pb),
    ScaleDecided: ("scale_decided", _scale_decided_to_pb),
}
