"""Serves `Pull`: blocks leave while the prefill that makes them is still computing.

Under a lease a page goes out as soon as its layer of the running step is done; blocks of earlier
steps and of the cache are found by hash, so a preemption in between does no harm. The last
message carries the sampled token. Without a lease, cached blocks are pinned and sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from banyan.v1 import kv_pb2, worker_pb2
from banyan_core.engine_messages import Release
from banyan_core.runner import PlanItem
from banyan_core.types import BlockHash
from banyan_runtime.kv_pages import num_bytes, num_pages
from banyan_runtime.rpc import Code, RpcError
from banyan_worker.changes import Changes
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import MessageBuilder, Pages, parse_hashes
from banyan_worker.step_loop import StepLoop


@dataclass(slots=True)
class _Lease:
    """A prefill that may be pulled: its full blocks, and its output once it is complete."""

    hashes: Sequence[BlockHash]
    output_token_ids: tuple[int, ...] | None = None
    gone: bool = False


@dataclass(slots=True)
class _Wanted:
    block_hash: BlockHash
    num_sent_layers: int = 0


@dataclass(frozen=True, slots=True)
class _Pull:
    """One that is being served."""

    wanted: list[_Wanted]
    takes_layers: bool


@dataclass(slots=True)
class _InFlight:
    """Blocks that the running step completes, and how many of its layers are done."""

    block_ids: dict[BlockHash, int] = field(default_factory=dict)
    num_layers_done: int = 0


class Exporter:
    """Follows the steps; `renew` is told of each message that leaves under a lease."""

    def __init__(
        self,
        pages: Pages,
        block_size: int,
        options: WorkerOptions,
        renew: Callable[[str], None],
    ) -> None:
        self._pages = pages
        self._block_size = block_size
        self._options = options
        self._renew = renew
        self._leases: dict[str, _Lease] = {}
        self._in_flight = _InFlight()
        self._changes = Changes()
        self._num_pulls = 0
        self._num_running = 0
        self.num_pages_sent = 0
        self.transfer_bytes = 0

    # ------------------------------------------------------------ what happens to leases

    def expect(self, lease_id: str, hashes: Sequence[BlockHash]) -> None:
        """A prefill was admitted; `hashes` are its full blocks in order."""
        self._leases[lease_id] = _Lease(hashes)
        self._changes.notify()

    def held(self, lease_id: str, output_token_ids: tuple[int, ...]) -> None:
        """Its blocks are complete and stay until the lease ends."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.output_token_ids = output_token_ids
            self._changes.notify()

    def end(self, lease_id: str) -> None:
        """Released, expired, cancelled or failed: whoever still pulls is told."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            lease.gone = True
            self._changes.notify()

    def is_held(self, lease_id: str) -> bool:
        lease = self._leases.get(lease_id)
        return lease is not None and lease.output_token_ids is not None

    # ------------------------------------------------------------ what happens in steps

    def step_started(self) -> None:
        self._in_flight = _InFlight()

    def written(self, item: PlanItem, block_ids: Sequence[int]) -> None:
        """The step that starts writes these blocks; those that it fills can be sent by layer."""
        lease = self._leases.get(item.sequence_id)
        if lease is not None:
            first = item.start // self._block_size
            end = (item.start + len(item.token_ids)) // self._block_size
            for index in range(first, end):
                self._in_flight.block_ids[lease.hashes[index]] = block_ids[index - first]

    def layer_done(self, layer: int) -> None:
        self._in_flight.num_layers_done = layer + 1
        if self._in_flight.block_ids:
            self._changes.notify()

    def step_ended(self) -> None:
        if self._in_flight.block_ids:
            self._changes.notify()
        self._in_flight = _InFlight()

    # ------------------------------------------------------------ pulls

    async def pull(
        self, request: worker_pb2.PullRequest, steps: StepLoop
    ) -> AsyncGenerator[kv_pb2.KvPages, None]:
        """Raises RpcError: NOT_FOUND without such a lease, EXHAUSTED past the bound."""
        hashes = parse_hashes(request.block_hashes)
        pull = _Pull([_Wanted(block_hash) for block_hash in hashes], request.takes_layers)
        if self._num_running >= self._options.max_pulls:
            raise RpcError(Code.EXHAUSTED, f"{self._num_running} pulls are running")
        self._num_running += 1
        try:
            source = (
                self._pull_leased(request.lease_id, pull, steps)
                if request.lease_id
                else self._pull_cached(pull, steps)
            )
            async for message in source:
                self.num_pages_sent += num_pages(message)
                self.transfer_bytes += num_bytes(message)
                yield message
        finally:
            self._num_running -= 1

    async def _pull_leased(
        self, lease_id: str, pull: _Pull, steps: StepLoop
    ) -> AsyncGenerator[kv_pb2.KvPages, None]:
        lease = await self._find(lease_id)
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + self._options.heartbeat_s
        while True:
            if lease.gone:
                raise RpcError(Code.NOT_FOUND, f"lease {lease_id} has ended")
            message = self._gather(pull, steps)
            if num_pages(message):
                self._renew(lease_id)
            elif lease.output_token_ids is not None:
                yield kv_pb2.KvPages(output_token_ids=lease.output_token_ids)
                return
            elif await self._changes.wait(max(0.0, silent_at - loop.time())):
                continue  # layers of others' steps wake it, too: its own last word counts
            yield message  # an empty one says: it goes on
            silent_at = loop.time() + self._options.heartbeat_s

    async def _find(self, lease_id: str) -> _Lease:
        """The lease; a pull may arrive a little before its prefill."""
        try:
            async with asyncio.timeout(self._options.unknown_lease_wait_s):
                while lease_id not in self._leases:
                    await self._changes.wait(self._options.heartbeat_s)
        except TimeoutError:
            raise RpcError(Code.NOT_FOUND, f"lease {lease_id} is not known here") from None
        return self._leases[lease_id]

    def _gather(self, pull: _Pull, steps: StepLoop) -> kv_pb2.KvPages:
        """Pages that are complete now and were not sent yet, up to one message."""
        message = MessageBuilder(self._pages, pull.takes_layers)
        flying = self._in_flight
        for block in pull.wanted:
            block_id = steps.engine.block_of(block.block_hash)
            num_ready = self._pages.num_layers
            if block_id is None:
                block_id = flying.block_ids.get(block.block_hash)
                num_ready = flying.num_layers_done
            if block_id is None or block.num_sent_layers >= num_ready:
                continue
            if message.is_full:
                break
            block.num_sent_layers = message.add(
                block.block_hash, block_id, block.num_sent_layers, num_ready
            )
        return message.take()

    async def _pull_cached(
        self, pull: _Pull, steps: StepLoop
    ) -> AsyncGenerator[kv_pb2.KvPages, None]:
        self._num_pulls += 1
        pin_id = f"pull/{self._num_pulls}"
        try:
            await steps.pin(pin_id, [block.block_hash for block in pull.wanted])
            while num_pages(message := self._gather(pull, steps)):
                yield message
        finally:
            steps.feed(Release((pin_id,)))
