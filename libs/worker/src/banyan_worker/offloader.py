"""Copies full blocks to the kvstore in the background, a prefill's and a decode's alike.

The queue is bounded and the work is never urgent: when the store is slow, new blocks are dropped
and counted, and the engine never waits. Blocks are pinned only while they are read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress

from banyan.v1 import kv_pb2
from banyan_core.engine_messages import Release
from banyan_core.types import BlockHash
from banyan_worker.changes import Changes
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import MessageBuilder, Pages
from banyan_worker.step_loop import StepLoop
from banyan_worker.store_client import StoreClient

GATHER_S = 0.25
"""Of a decode worker's blocks one fills every few steps, and a call costs the store as much as a
block does. Nobody waits for them here."""
_BATCH_BYTES = 8 << 20
_IDLE_S = 5.0


class Offloader:
    def __init__(self, store: StoreClient, pages: Pages, options: WorkerOptions) -> None:
        self._store = store
        self._pages = pages
        self._most = max(1, _BATCH_BYTES // pages.block_bytes)
        self._options = options
        self._queue: deque[BlockHash] = deque()
        self._changes = Changes()
        self._num_batches = 0
        self.num_stored_blocks = 0
        self.num_dropped_blocks = 0

    def blocks_filled(self, hashes: Sequence[BlockHash]) -> None:
        """Offer blocks; past the bound they are dropped."""
        if not self._options.offload:
            return
        room = self._options.max_offload_blocks - len(self._queue)
        self._queue.extend(hashes[:room])
        self.num_dropped_blocks += max(0, len(hashes) - room)
        self._changes.notify()

    async def run(self, steps: StepLoop) -> None:
        while True:
            if not self._queue:
                await self._changes.wait(_IDLE_S)
                continue
            await self._gather()
            addresses = await self._store.addresses()
            batch = self._next_batch()
            if not addresses:
                self.num_dropped_blocks += len(batch)
                continue
            await self._offload(addresses[0], batch, steps)

    async def _gather(self) -> None:
        """Let more blocks come, as long as they are less than a batch."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                while len(self._queue) < self._most:
                    await self._changes.wait(GATHER_S)

    def _next_batch(self) -> list[BlockHash]:
        return [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]

    async def _offload(self, address: str, batch: list[BlockHash], steps: StepLoop) -> None:
        stored = await self._store.stored(address, batch)
        if stored is None:
            self.num_dropped_blocks += len(batch)
            return
        fresh = batch[stored.num_blocks :]
        if not fresh:
            return
        self._num_batches += 1
        pin_id = f"offload/{self._num_batches}"
        try:
            blocks = await steps.pin(pin_id, fresh)
            messages = self._messages(blocks, MessageBuilder(self._pages, stored.takes_layers))
            num_stored = await self._store.put(address, messages) if blocks else 0
        finally:
            steps.feed(Release((pin_id,)))
        if num_stored is None:
            self.num_dropped_blocks += len(blocks)
        else:
            self.num_stored_blocks += num_stored

    async def _messages(
        self, blocks: Mapping[BlockHash, int], message: MessageBuilder
    ) -> AsyncGenerator[kv_pb2.KvPages, None]:
        for block_hash, block_id in blocks.items():
            layer = 0
            while layer < self._pages.num_layers:
                layer = message.add(block_hash, block_id, layer, self._pages.num_layers)
                if message.is_full:
                    yield message.take()
        if not message.is_empty:
            yield message.take()
