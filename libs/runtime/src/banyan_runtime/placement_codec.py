"""Placement between the wire and core: what a router is asked, what it answers, and why."""

from __future__ import annotations

from banyan.v1 import common_pb2, router_pb2
from banyan_core import hashing
from banyan_core.placement import Candidate, Decision, Placement, PlaceQuery, Score
from banyan_core.types import Refusal
from banyan_runtime.worker_codec import (
    require,
    role_from_pb,
    role_to_pb,
    worker_ref_from_pb,
    worker_ref_to_pb,
)


def place_query_to_pb(query: PlaceQuery) -> router_pb2.PlaceRequest:
    return router_pb2.PlaceRequest(
        request_id=query.request_id,
        choice=query.choice,
        attempt=query.attempt,
        card_digest=query.card_digest,
        block_hashes=hashing.pack(query.block_hashes),
        num_prompt_tokens=query.num_prompt_tokens,
        num_output_tokens=query.num_output_tokens,
        max_tokens=query.max_tokens,
        priority=query.priority,
        excluded_worker_ids=query.excluded,
        kept_prefill_worker_id=query.kept_prefill,
    )


def place_query_from_pb(message: router_pb2.PlaceRequest) -> PlaceQuery:
    return PlaceQuery(
        request_id=message.request_id,
        choice=message.choice,
        attempt=message.attempt,
        card_digest=message.card_digest,
        block_hashes=hashing.unpack(message.block_hashes),
        num_prompt_tokens=message.num_prompt_tokens,
        num_output_tokens=message.num_output_tokens,
        max_tokens=message.max_tokens,
        priority=message.priority,
        excluded=tuple(message.excluded_worker_ids),
        kept_prefill=message.kept_prefill_worker_id,
    )


def placement_to_pb(placement: Placement) -> router_pb2.Placement:
    prefill = placement.prefill
    return router_pb2.Placement(
        prefill=None if prefill is None else worker_ref_to_pb(prefill),
        decode=worker_ref_to_pb(placement.decode),
        num_expected_cached_tokens=placement.num_expected_cached_tokens,
        skip_store=placement.skip_store,
    )


def placement_from_pb(message: router_pb2.Placement) -> Placement:
    require(message, "decode")
    prefill = worker_ref_from_pb(message.prefill) if message.HasField("prefill") else None
    decode = worker_ref_from_pb(message.decode)
    return Placement(decode, prefill, message.num_expected_cached_tokens, message.skip_store)


def decision_to_pb(decision: Decision) -> common_pb2.Decision:
    message = common_pb2.Decision()
    _write_decision(decision, message)
    return message


def _write_decision(decision: Decision, message: common_pb2.Decision) -> None:
    """In place: a message that is given to another one's constructor is copied, field by field."""
    message.policy = decision.policy
    message.number = decision.number
    message.reason = decision.reason
    message.view_age_ns = decision.view_age_ns
    for candidate in decision.candidates:
        said = message.candidates.add(
            worker_id=candidate.worker_id,
            role=role_to_pb(candidate.role),
            filtered=candidate.filtered,
            total=candidate.total,
        )
        for score in candidate.scores:
            said.scores.add(name=score.name, value=score.value, weight=score.weight)


def decision_from_pb(message: common_pb2.Decision) -> Decision:
    return Decision(
        policy=message.policy,
        number=message.number,
        candidates=tuple(_candidate_from_pb(candidate) for candidate in message.candidates),
        reason=message.reason,
        view_age_ns=message.view_age_ns,
    )


def _candidate_from_pb(message: common_pb2.Candidate) -> Candidate:
    return Candidate(
        worker_id=message.worker_id,
        role=role_from_pb(message.role),
        filtered=message.filtered,
        scores=tuple(Score(score.name, score.value, score.weight) for score in message.scores),
        total=message.total,
    )


def place_response_to_pb(
    outcome: Placement | Refusal, decision: Decision
) -> router_pb2.PlaceResponse:
    if isinstance(outcome, Refusal):
        refusal = router_pb2.PlaceRefusal(
            reason=outcome.reason, retry_after_ns=outcome.retry_after_ns
        )
        message = router_pb2.PlaceResponse(refusal=refusal)
    else:
        message = router_pb2.PlaceResponse(placement=placement_to_pb(outcome))
    _write_decision(decision, message.decision)
    return message


def place_response_from_pb(
    message: router_pb2.PlaceResponse,
) -> tuple[Placement | Refusal, Decision]:
    decision = decision_from_pb(message.decision)
    if message.HasField("placement"):
        return placement_from_pb(message.placement), decision
    if message.HasField("refusal"):
        return Refusal(message.refusal.reason, message.refusal.retry_after_ns), decision
    raise ValueError("outcome: neither placement nor refusal is set")
