"""The twin of the index: the same fencing, epochs and time-to-live, by the clock it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from banyan_core.index_facts import Position
from banyan_core.types import NS_PER_S, BlockHash
from banyan_runtime.clock import Clock
from banyan_runtime.kv_index import Fenced, IndexUnavailable, Loaded

NS_PER_US = 1000


@dataclass(slots=True)
class _Holder:
    at: Position
    expires_ns: int
    hashes: dict[BlockHash, None] = field(default_factory=dict)


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
        self._holders: dict[str, _Holder] = {}

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

    def holders(self) -> dict[str, _Holder]:
        """Those whose time has not ended."""
        now = self.clock.now_ns()
        self._holders = {name: one for name, one in self._holders.items() if one.expires_ns > now}
        return self._holders


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
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        server = await self._reach(fence)
        known = server.holders().get(holder)
        if known is not None and known.at.epoch == at.epoch:
            known.hashes.update(dict.fromkeys(hashes))
            self._note(known, at, ttl_s)
            return True
        return known is not None and known.at.epoch > at.epoch

    async def remove(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        server = await self._reach(fence)
        known = server.holders().get(holder)
        if known is not None and known.at.epoch == at.epoch:
            for block_hash in hashes:
                known.hashes.pop(block_hash, None)
            self._note(known, at, ttl_s)
            return True
        return known is not None and known.at.epoch > at.epoch

    async def replace(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        holders = (await self._reach(fence)).holders()
        known = holders.get(holder)
        if known is None or known.at.epoch <= at.epoch:
            holders[holder] = _Holder(at, 0, dict.fromkeys(hashes))
            self._note(holders[holder], at, ttl_s)

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        holders = (await self._reach(fence)).holders()
        known = holders.get(holder)
        if known is not None and known.at.epoch < epoch:
            del holders[holder]

    async def drop_holder(self, fence: int, holder: str) -> None:
        (await self._reach(fence)).holders().pop(holder, None)

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for name, holder in (await self._reach()).holders().items():
            count = next((i for i, one in enumerate(hashes) if one not in holder.hashes), None)
            if count != 0 and hashes:
                counts[name] = len(hashes) if count is None else count
        return counts

    async def positions(self) -> Mapping[str, Position]:
        return {name: holder.at for name, holder in (await self._reach()).holders().items()}

    async def load(self, holder: str) -> Loaded | None:
        known = (await self._reach()).holders().get(holder)
        return None if known is None else Loaded(known.at, tuple(known.hashes))

    async def close(self) -> None:
        return

    async def _reach(self, fence: int | None = None) -> MemoryIndexServer:
        await asyncio.sleep(0)
        if self._is_cut or not self._server.is_up:
            raise IndexUnavailable("the index server is down")
        if fence is not None and fence != self._server.fence:
            raise Fenced(f"the lease with token {fence} is over")
        return self._server

    def _note(self, holder: _Holder, at: Position, ttl_s: float) -> None:
        holder.at = at
        holder.expires_ns = self._server.clock.now_ns() + round(ttl_s * NS_PER_S)
