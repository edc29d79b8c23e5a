"""The twin of the index: the same fencing, epochs and time-to-live, by the clock it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from banyan_core.types import NS_PER_S, BlockHash
from banyan_runtime.clock import Clock
from banyan_runtime.kv_index import Fenced, IndexUnavailable

NS_PER_US = 1000


@dataclass(slots=True)
class _Block:
    stamps: dict[str, int] = field(default_factory=dict)
    expires_ns: int = 0


class MemoryIndexServer:
    """What survives its clients. Can be taken down, with or without its content."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_up = True
        self._last_fence = 0  # outlives the content, as the real server's clock does
        self._forget()

    def _forget(self) -> None:
        self.lease_owner = ""
        self.lease_expires_ns = 0
        self.fence = 0
        self.num_generations = 0
        self.epochs: dict[str, tuple[int, int]] = {}  # holder -> (epoch, generation)
        self.blocks: dict[BlockHash, _Block] = {}

    def down(self, *, lose_content: bool = False) -> None:
        self.is_up = False
        if lose_content:
            self._forget()

    def up(self) -> None:
        self.is_up = True

    def next_fence(self) -> int:
        """A token higher than any before, also after a loss of content."""
        self._last_fence = max(self._last_fence + 1, self.clock.unix_ns() // NS_PER_US)
        self.fence = self._last_fence
        return self.fence


class MemoryKvIndex:
    """One process's access to the server."""

    def __init__(self, server: MemoryIndexServer) -> None:
        self._server = server
        self._is_cut = False

    def cut(self) -> None:
        """The process has crashed: nothing it does from now on is seen."""
        self._is_cut = True

    async def acquire(self, owner: str, ttl_s: float) -> int | None:
        server = await self._reach()
        now = server.clock.now_ns()
        if server.lease_expires_ns > now and server.lease_owner != owner:
            return None
        if server.lease_expires_ns <= now or server.lease_owner != owner:
            server.next_fence()
        server.lease_owner = owner
        server.lease_expires_ns = now + round(ttl_s * NS_PER_S)
        return server.fence

    async def add(
        self, fence: int, holder: str, epoch: int, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        server = await self._reach(fence)
        self._raise_epoch(server, holder, epoch)
        current, generation = server.epochs[holder]
        if current != epoch:
            return
        now = server.clock.now_ns()
        for block_hash in hashes:
            block = server.blocks.get(block_hash)
            if block is None or block.expires_ns <= now:
                block = server.blocks[block_hash] = _Block()
            block.stamps[holder] = generation
            block.expires_ns = max(block.expires_ns, now + round(ttl_s * NS_PER_S))

    async def remove(self, fence: int, holder: str, hashes: Sequence[BlockHash]) -> None:
        server = await self._reach(fence)
        for block_hash in hashes:
            block = server.blocks.get(block_hash)
            if block is not None:
                block.stamps.pop(holder, None)

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        self._raise_epoch(await self._reach(fence), holder, epoch)

    async def drop_holder(self, fence: int, holder: str) -> None:
        (await self._reach(fence)).epochs.pop(holder, None)

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        server = await self._reach()
        now = server.clock.now_ns()
        counts: dict[str, int] = {}
        for place, block_hash in enumerate(hashes):
            block = server.blocks.get(block_hash)
            if block is None or block.expires_ns <= now:
                break
            for holder, stamp in block.stamps.items():
                known = server.epochs.get(holder)
                if known is not None and known[1] == stamp and counts.get(holder, 0) == place:
                    counts[holder] = place + 1
        return counts

    async def close(self) -> None:
        return

    async def _reach(self, fence: int | None = None) -> MemoryIndexServer:
        await asyncio.sleep(0)
        if self._is_cut or not self._server.is_up:
            raise IndexUnavailable("the index server is down")
        if fence is not None and fence != self._server.fence:
            raise Fenced(f"the lease with token {fence} is over")
        return self._server

    @staticmethod
    def _raise_epoch(server: MemoryIndexServer, holder: str, epoch: int) -> None:
        known = server.epochs.get(holder)
        if known is None or known[0] < epoch:
            server.num_generations += 1
            server.epochs[holder] = (epoch, server.num_generations)
