"""Where blocks live: in memory first, then on disk, each bounded in bytes, least recently used out.

Memory that runs full moves its oldest blocks to disk; disk that runs full forgets its oldest. A
block that is read from disk comes back into memory; its file stays, so that moving it out again
costs nothing. New blocks are copied to disk behind the calls that brought them, for what is on
disk survives a kill. Bounds hold at every instant: room is made before a block goes in, and a
block is in memory until its file is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier, TierFigures

T = TypeVar("T")

COPY_BYTES = 1 << 20
COPY_BLOCKS = 64
"""Of one turn: whoever must make room waits for it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a call did to the set of blocks that the store has in any tier."""

    stored: tuple[BlockHash, ...] = ()
    removed: tuple[BlockHash, ...] = ()


class Tiers:
    """Both tiers as one store.

    Who needs the disk or others' room waits its turn; reads of memory, and puts for which it has
    room, do not.
    """

    def __init__(self, memory: MemoryTier, disk: DiskTier | None) -> None:
        self._memory = memory
        self._disk = disk
        self._changing = asyncio.Lock()
        self._uncopied: dict[BlockHash, None] = {}  # some of the blocks that memory has
        self._any_uncopied = asyncio.Event()
        self.num_misses = 0

    @property
    def num_uncopied(self) -> int:
        """Blocks that a kill would lose: put in memory, and not yet on disk."""
        return len(self._uncopied)

    async def open(self) -> None:
        """Raises OSError when the disk folder cannot be used."""
        if self._disk is not None:
            await self._disk.open()

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._memory or (self._disk is not None and block_hash in self._disk)

    def hashes(self) -> tuple[BlockHash, ...]:
        """Every block that is here, once."""
        on_disk = () if self._disk is None else self._disk.hashes()
        return tuple(dict.fromkeys((*self._memory.hashes(), *on_disk)))

    def num_prefix_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """How many, from the first on, are here without a hole."""
        for index, block_hash in enumerate(hashes):
            if block_hash not in self:
                return index
        return len(hashes)

    async def get(self, block_hash: BlockHash) -> tuple[Block | None, Change]:
        """The block, or None; reading may move others out or find a file damaged."""
        block = self._memory.get(block_hash)
        if block is not None:
            if self._disk is not None:
                self._disk.touch(block_hash)
            return block, Change()
        if self._disk is None or block_hash not in self._disk:
            self.num_misses += 1
            return None, Change()
        return await _to_its_end(self._read(self._disk, block_hash))

    async def put(self, block: Block) -> Change:
        """Keep the block. The first one stored under a hash stays."""
        if block.block_hash in self:
            return Change()
        if self._fits_memory(block) and self._memory.oldest_beyond(block.num_bytes) is None:
            self._keep(block)
            return Change((block.block_hash,))
        return await _to_its_end(self._put(block))

    async def _read(self, disk: DiskTier, block_hash: BlockHash) -> tuple[Block | None, Change]:
        async with self._changing:
            block = self._memory.get(block_hash) or await disk.get(block_hash)
            if block is None:
                self.num_misses += 1
                return None, Change(removed=() if block_hash in self else (block_hash,))
            return block, Change(removed=await self._admit(block))

    async def _put(self, block: Block) -> Change:
        async with self._changing:
            if block.block_hash in self:
                return Change()
            if self._fits_memory(block):
                removed = await self._admit(block)
                return Change((block.block_hash,), removed)
            if self._disk is None:
                return Change()
            removed = await self._disk.put(block)
            stored = () if block.block_hash in removed else (block.block_hash,)
            return Change(stored, tuple(b for b in removed if b not in self))

    async def copy_some(self) -> Change:
        """Wait for blocks that were put in memory, and copy about 1 MiB to disk, oldest put first.

        A block that disk forgets later, or cannot take, is not copied again: a disk smaller than
        memory would be written for ever.
        """
        await self._any_uncopied.wait()
        async with self._changing:
            blocks = self._next_uncopied()
            if self._disk is None or not blocks:
                return Change()
            removed = await self._disk.put(*blocks)
            for block in blocks:
                self._copied(block.block_hash)
            return Change(removed=tuple(gone for gone in removed if gone not in self))

    def _next_uncopied(self) -> list[Block]:
        blocks: list[Block] = []
        num_bytes = 0
        for block_hash in self._uncopied:
            if num_bytes >= COPY_BYTES or len(blocks) == COPY_BLOCKS:
                break
            blocks.append(self._memory.peek(block_hash))
            num_bytes += blocks[-1].num_bytes
        return blocks

    async def flush(self) -> None:
        """Write to disk all that only memory has, the least recently used first."""
        if self._disk is None:
            return
        async with self._changing:
            for block_hash in self._memory.hashes():
                if block_hash not in self._disk:
                    await self._disk.put(self._memory.peek(block_hash))
                self._copied(block_hash)

    def figures(self) -> tuple[TierFigures, ...]:
        memory = self._memory.figures()
        return (memory,) if self._disk is None else (memory, self._disk.figures())

    async def _admit(self, block: Block) -> tuple[BlockHash, ...]:
        """Make room in memory and put the block there; what left the store altogether."""
        if not self._fits_memory(block) or block.block_hash in self._memory:
            return ()
        gone: list[BlockHash] = []
        while (oldest := self._memory.oldest_beyond(block.num_bytes)) is not None:
            if self._disk is None:
                gone.append(oldest.block_hash)
            elif oldest.block_hash not in self._disk:
                gone.extend(await self._disk.put(oldest))
            self._memory.evict(oldest.block_hash)
            self._copied(oldest.block_hash)
        if block.block_hash not in self._memory:  # others may put it while room is made
            self._keep(block)
        return tuple(block_hash for block_hash in gone if block_hash not in self)

    def _fits_memory(self, block: Block) -> bool:
        return block.num_bytes <= self._memory.limit_bytes

    def _keep(self, block: Block) -> None:
        self._memory.put(block)
        if self._disk is not None and block.block_hash not in self._disk:
            self._uncopied[block.block_hash] = None
            self._any_uncopied.set()

    def _copied(self, block_hash: BlockHash) -> None:
        self._uncopied.pop(block_hash, None)
        if not self._uncopied:
            self._any_uncopied.clear()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Go on when the caller is cancelled: bytes are counted where files are written."""
    return await asyncio.shield(asyncio.ensure_future(work))
