"""Holds one `Watch` stream to every worker that the directory lists.

What a worker says becomes facts for the placer; what the router knows of a worker it knows from
here alone, not from the bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import NamedTuple

from banyan.v1 import worker_pb2
from banyan_core.cluster import ClusterFact, LoadReported, WorkerLost, WorkerSeen
from banyan_core.types import Role, WorkerRef
from banyan_runtime import codec, wire
from banyan_runtime.directory import Directory
from banyan_runtime.lifespan import Tasks
from banyan_runtime.rpc import Code, Network, RpcError

LIST_S = 0.5
LIST_EMPTY_S = 0.2
SILENCE_S = 3.0
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0


class _Broke(NamedTuple):
    """How a watch ended; `heard` tells a worker that spoke from an address that never did."""

    why: str
    heard: bool


class WorkerWatch:
    """`feed` gets the facts, in the order in which each worker said them."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        feed: Callable[[ClusterFact], None],
        logger: logging.Logger,
    ) -> None:
        self._network = network
        self._directory = directory
        self._feed = feed
        self._logger = logger
        self._listed: dict[str, None] = {}
        self._followed: dict[str, None] = {}

    async def run(self, tasks: Tasks) -> None:
        """List for ever, and follow each address while it is listed."""
        while True:
            self._listed = {}
            for role in Role:
                self._listed.update(dict.fromkeys(await self._directory.addresses(role.value)))
            for address in self._listed:
                if address not in self._followed:
                    self._followed[address] = None
                    tasks.spawn_brief(f"watch {address}", self._follow(address))
            await asyncio.sleep(LIST_S if self._listed else LIST_EMPTY_S)

    async def _follow(self, address: str) -> None:
        """Watch until the address is no longer listed; a running watch outlives its listing."""
        backoff_s = FIRST_BACKOFF_S
        try:
            while address in self._listed:
                broke = await self._watch(address)
                if broke.heard or backoff_s == FIRST_BACKOFF_S:  # not at every try of a dead one
                    self._logger.info("watch broke", extra={"address": address, "why": broke.why})
                await asyncio.sleep(FIRST_BACKOFF_S if broke.heard else backoff_s)
                backoff_s = FIRST_BACKOFF_S if broke.heard else min(2 * backoff_s, MAX_BACKOFF_S)
        finally:
            self._followed.pop(address, None)

    async def _watch(self, address: str) -> _Broke:
        """One stream, from the card to its break."""
        ref: WorkerRef | None = None
        stream = self._network.channel(address).stream(wire.WATCH, worker_pb2.WatchRequest())
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    report = await anext(stream)
                if ref is None:
                    ref = self._introduce(report)
                load = codec.worker_load_from_pb(report.load)
                self._feed(LoadReported(ref.worker_id, ref.epoch, load))
        except StopAsyncIteration:
            return _Broke("the worker ended it", ref is not None)
        except TimeoutError:
            return _Broke(f"silent for {SILENCE_S:g} s", ref is not None)
        except (RpcError, ValueError) as error:
            return _Broke(str(error), ref is not None)
        finally:
            if ref is not None:
                self._feed(WorkerLost(ref.worker_id, ref.epoch))
            await _close(stream)

    def _introduce(self, report: worker_pb2.WorkerReport) -> WorkerRef:
        if not report.HasField("card"):
            raise RpcError(Code.INVALID, "the first report of a watch has no model card")
        ref = codec.worker_ref_from_pb(report.worker)
        card = codec.model_card_from_pb(report.card)
        if card.block_size < 1:
            raise RpcError(Code.INVALID, f"card.block_size is {card.block_size}, expected >= 1")
        self._feed(WorkerSeen(ref, card.digest, card.name, report.num_blocks, card.block_size))
        return ref


async def _close(stream: AsyncIterator[worker_pb2.WorkerReport]) -> None:
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
