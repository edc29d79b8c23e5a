"""A worker's way to the kvstores: what they have, what a fetch costs, and handing blocks over.

A store is never needed. One that does not answer is left alone for a while, so that its absence
does not cost every request a timeout.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from banyan.v1 import kv_pb2
from banyan_core.hashing import pack
from banyan_core.policies.onboard import OnboardView
from banyan_core.rates import MovingAverage
from banyan_core.types import NS_PER_S, BlockHash, ModelCard, WorkerLoad
from banyan_runtime import wire
from banyan_runtime.clock import Clock
from banyan_runtime.directory import Directory
from banyan_runtime.kv_pages import num_bytes
from banyan_runtime.rpc import Network, RpcError
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import close_stream

_HAS_TIMEOUT_S = 0.5
_PUT_TIMEOUT_S = 10.0
_REST_NS = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Offer:
    """A store that has these, and that the policy wants to fetch from."""

    address: str
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store says of blocks that it was asked for, and of how it wants others."""

    num_blocks: int
    takes_layers: bool


class StoreClient:
    def __init__(
        self,
        network: Network,
        directory: Directory,
        clock: Clock,
        card: ModelCard,
        options: WorkerOptions,
        logger: logging.Logger,
    ) -> None:
        self._network = network
        self._directory = directory
        self._clock = clock
        self._block_size = card.block_size
        self._block_bytes = card.kv_layout.token_bytes * card.block_size
        self._options = options
        self._logger = logger
        self._latency = MovingAverage()
        self._bandwidth = MovingAverage()
        self._resting_until: dict[str, int] = {}

    async def addresses(self) -> tuple[str, ...]:
        """Stores that are not known to be away."""
        now = self._clock.now_ns()
        found = await self._directory.addresses("kvstore")
        return tuple(a for a in found if self._resting_until.get(a, 0) <= now)

    async def offer(self, missing: Sequence[BlockHash], load: WorkerLoad) -> Offer | None:
        """The store with the longest run of `missing`, if fetching that is worth it."""
        best = Offer("", ())
        for address in await self.addresses():
            stored = await self.stored(address, missing)
            if stored is not None and stored.num_blocks > len(best.hashes):
                best = Offer(address, tuple(missing[: stored.num_blocks]))
        view = OnboardView(
            num_tokens=len(best.hashes) * self._block_size,
            num_bytes=len(best.hashes) * self._block_bytes,
            store_latency_s=self._latency.value,
            store_bytes_per_s=self._bandwidth.value,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
        )
        return best if self._options.onboard.decide(view).fetch else None

    async def stored(self, address: str, hashes: Sequence[BlockHash]) -> Stored | None:
        """How many of these, from the first on, a store has; None when it does not answer."""
        started_ns = self._clock.now_ns()
        request = kv_pb2.HasRequest(block_hashes=pack(hashes))
        channel = self._network.channel(address)
        try:
            answer = await channel.unary(wire.STORE_HAS, request, _HAS_TIMEOUT_S)
        except RpcError as error:
            self._rest(address, error)
            return None
        self._latency.add((self._clock.now_ns() - started_ns) / NS_PER_S)
        return Stored(min(answer.num_prefix_blocks, len(hashes)), answer.takes_layers)

    async def fetch(self, offer: Offer) -> AsyncGenerator[kv_pb2.KvPages, None]:
        """The blocks' pages; ends early when the store breaks off."""
        started_ns = self._clock.now_ns()
        request = kv_pb2.GetRequest(block_hashes=pack(offer.hashes), takes_layers=True)
        timeout_s = self._options.store_timeout_s
        stream = self._network.channel(offer.address).stream(wire.STORE_GET, request, timeout_s)
        fetched_bytes = 0
        try:
            async for message in stream:
                fetched_bytes += num_bytes(message)
                yield message
        except RpcError as error:
            self._rest(offer.address, error)
        finally:
            await close_stream(stream)
        elapsed_ns = self._clock.now_ns() - started_ns
        if fetched_bytes and elapsed_ns:
            self._bandwidth.add(fetched_bytes * NS_PER_S / elapsed_ns)

    async def put(self, address: str, messages: AsyncIterator[kv_pb2.KvPages]) -> int | None:
        """How many blocks were stored; None when the store broke off."""
        channel = self._network.channel(address)
        try:
            answer = await channel.upload(wire.STORE_PUT, messages, _PUT_TIMEOUT_S)
        except RpcError as error:
            self._rest(address, error)
            return None
        return answer.num_stored_blocks

    def _rest(self, address: str, error: RpcError) -> None:
        self._resting_until[address] = self._clock.now_ns() + _REST_NS
        self._logger.warning("kvstore left alone", extra={"address": address, "why": str(error)})
