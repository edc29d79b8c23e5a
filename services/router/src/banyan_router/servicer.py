"""The router's verbs: protobuf in, a pure decision, protobuf out."""

from __future__ import annotations

from typing import Protocol

from banyan.v1 import router_pb2
from banyan_core.cluster import ClusterSnapshot, WorkerView
from banyan_core.placement import PlaceQuery
from banyan_core.placer import PlaceDecided
from banyan_core.policies.routing_view import Holdings
from banyan_core.types import NS_PER_S, Refusal
from banyan_router.prefixes import Prefixes
from banyan_runtime import codec, wire
from banyan_runtime.rpc import Code, Handler, RpcError, serve_unary
from banyan_runtime.trace_context import current_trace
from banyan_runtime.tracing import NO_TRACING, Attribute, Tracing, spanning


class Desk(Protocol):
    """Where decisions are made, one after the other."""

    async def decide(self, query: PlaceQuery, holdings: Holdings) -> PlaceDecided: ...

    def snapshot(self) -> ClusterSnapshot: ...


class RouterServicer:
    def __init__(self, desk: Desk, prefixes: Prefixes, tracing: Tracing = NO_TRACING) -> None:
        self._desk = desk
        self._prefixes = prefixes
        self._tracing = tracing

    def handlers(self) -> tuple[Handler, ...]:
        return (serve_unary(wire.PLACE, self.place), serve_unary(wire.VIEW, self.view))

    async def place(self, request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
        try:
            query = codec.place_query_from_pb(request)
        except ValueError as error:
            raise RpcError(Code.INVALID, str(error)) from None
        if not query.request_id:
            raise RpcError(Code.INVALID, "request_id is empty")
        if query.num_prompt_tokens < 1:
            raise RpcError(Code.INVALID, "num_prompt_tokens is 0, expected at least 1")
        span = self._tracing.under(current_trace(), "Place", {})
        with spanning(span):
            decided = await self._desk.decide(query, await self._prefixes.find(query.block_hashes))
            if span is not None:
                span.set(_explained(decided))
        return codec.place_response_to_pb(decided.outcome, decided.decision)

    async def view(self, _: router_pb2.ViewRequest) -> router_pb2.ViewResponse:
        workers = [_viewed_to_pb(worker) for worker in self._desk.snapshot().workers]
        return router_pb2.ViewResponse(workers=workers)


def _explained(decided: PlaceDecided) -> dict[str, Attribute]:
    decision, outcome = decided.decision, decided.outcome
    explained: dict[str, Attribute] = {
        "banyan.policy": decision.policy,
        "banyan.reason": decision.reason,
        "banyan.num_candidates": len(decision.candidates),
        "banyan.view_age_s": decision.view_age_ns / NS_PER_S,
    }
    if isinstance(outcome, Refusal):
        return explained | {"banyan.refusal": outcome.reason}
    prefill = outcome.prefill or outcome.decode
    return explained | {
        "banyan.prefill.worker.id": prefill.worker_id,
        "banyan.decode.worker.id": outcome.decode.worker_id,
        "banyan.num_expected_cached_tokens": outcome.num_expected_cached_tokens,
    }


def _viewed_to_pb(worker: WorkerView) -> router_pb2.ViewedWorker:
    return router_pb2.ViewedWorker(
        worker=codec.worker_ref_to_pb(worker.ref),
        card_digest=worker.card_digest,
        model=worker.model,
        load=codec.worker_load_to_pb(worker.load),
        live=worker.live,
        age_ns=worker.age_ns,
    )
