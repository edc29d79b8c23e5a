"""The router's verbs: protobuf in, a pure decision, protobuf out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from banyan.v1 import router_pb2
from banyan_core.cluster import ClusterSnapshot, WorkerView
from banyan_core.placer import PlaceDecided
from banyan_core.policies.routing_view import Holdings
from banyan_core.types import BlockHash, PlaceQuery
from banyan_runtime import codec, wire
from banyan_runtime.kv_index import IndexUnavailable, KvIndex
from banyan_runtime.rpc import Code, Handler, RpcError, serve_unary

LOOKUP_TIMEOUT_S = 0.05


class Desk(Protocol):
    """Where decisions are made, one after the other."""

    async def decide(self, query: PlaceQuery, holdings: Holdings) -> PlaceDecided: ...

    def snapshot(self) -> ClusterSnapshot: ...


class RouterServicer:
    """`on_index_miss` is called for each decision that the index had no part in."""

    def __init__(self, desk: Desk, index: KvIndex, on_index_miss: Callable[[], None]) -> None:
        self._desk = desk
        self._index = index
        self._on_index_miss = on_index_miss

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
        decided = await self._desk.decide(query, await self._holdings(query.block_hashes))
        return codec.place_response_to_pb(decided.outcome, decided.decision)

    async def view(self, _: router_pb2.ViewRequest) -> router_pb2.ViewResponse:
        workers = [_viewed_to_pb(worker) for worker in self._desk.snapshot().workers]
        return router_pb2.ViewResponse(workers=workers)

    async def _holdings(self, hashes: Sequence[BlockHash]) -> Holdings:
        """Who has the prompt's blocks. The index is a hint: a late answer is no answer."""
        if not hashes:
            return Holdings()
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await self._index.lookup(hashes)
        except (IndexUnavailable, TimeoutError):
            self._on_index_miss()
            return Holdings(known=False)
        return Holdings(tuple(sorted(found.items())))


def _viewed_to_pb(worker: WorkerView) -> router_pb2.ViewedWorker:
    return router_pb2.ViewedWorker(
        worker=codec.worker_ref_to_pb(worker.ref),
        card_digest=worker.card_digest,
        model=worker.model,
        load=codec.worker_load_to_pb(worker.load),
        live=worker.live,
        age_ns=worker.age_ns,
    )
