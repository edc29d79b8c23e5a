"""The tier that survives a restart: a file per block under two levels of folders.

The files are the truth; the sizes kept here are found again by a scan. All I/O is offloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from banyan_core.types import BlockHash
from banyan_kvstore import block_file
from banyan_kvstore.block import Block
from banyan_kvstore.memory_tier import TierFigures
from banyan_runtime.offload import Offload


class DiskTier:
    """Blocks by hash, oldest use first. Calls that change it must not overlap."""

    def __init__(self, folder: Path, limit_bytes: int, offload: Offload) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.num_hits = 0
        self.num_evictions = 0
        self.num_damaged = 0
        self._folder = folder
        self._offload = offload
        self._sizes: OrderedDict[BlockHash, int] = OrderedDict()

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._sizes

    def hashes(self) -> tuple[BlockHash, ...]:
        return tuple(self._sizes)

    async def open(self) -> None:
        """Find what an earlier life left; drop what is damaged or past the limit.

        Raises OSError when the folder cannot be made or read.
        """
        found, self.num_damaged = await self._offload.run(_scan, self._folder)
        for block_hash, size in found:
            self._sizes[block_hash] = size
            self.used_bytes += size
        await self._make_room(0)

    async def get(self, block_hash: BlockHash) -> Block | None:
        """The block, every digest checked; a damaged or unreadable file is dropped and counted."""
        if block_hash not in self._sizes:
            return None
        try:
            block = await self._offload.run(block_file.read, self._path(block_hash), block_hash)
        except (block_file.DamagedFile, OSError):
            self.num_damaged += 1
            await self._drop(block_hash)
            return None
        self._sizes.move_to_end(block_hash)
        self.num_hits += 1
        return block

    def touch(self, block_hash: BlockHash) -> None:
        """Count a block as used, if it is here: its copy in memory was."""
        if block_hash in self._sizes:
            self._sizes.move_to_end(block_hash)

    async def put(self, block: Block) -> tuple[BlockHash, ...]:
        """Store it, and answer what had to go. It is itself among those when it cannot fit."""
        size = block_file.file_bytes(block)
        if size > self.limit_bytes:
            return (block.block_hash,)
        evicted = await self._make_room(size)
        self.used_bytes += size  # before the write: a bound that only holds afterwards is none
        try:
            await self._offload.run(
                block_file.write, self._path(block.block_hash), block, self._scratch(block)
            )
        except OSError:
            self.used_bytes -= size
            return (*evicted, block.block_hash)
        self._sizes[block.block_hash] = size
        return evicted

    async def _make_room(self, num_bytes: int) -> tuple[BlockHash, ...]:
        evicted = []
        while self._sizes and self.used_bytes + num_bytes > self.limit_bytes:
            block_hash = next(iter(self._sizes))
            await self._drop(block_hash)
            self.num_evictions += 1
            evicted.append(block_hash)
        return tuple(evicted)

    async def _drop(self, block_hash: BlockHash) -> None:
        size = self._sizes.pop(block_hash, None)
        if size is not None:
            await self._offload.run(_unlink, self._path(block_hash))
            self.used_bytes -= size

    def _path(self, block_hash: BlockHash) -> Path:
        name = block_hash.hex()
        return self._folder / name[:2] / name[2:4] / name

    def _scratch(self, block: Block) -> Path:
        return self._folder / "scratch" / block.block_hash.hex()

    def figures(self) -> TierFigures:
        return TierFigures(
            "disk",
            len(self._sizes),
            self.used_bytes,
            self.limit_bytes,
            self.num_hits,
            self.num_evictions,
            self.num_damaged,
        )


def _scan(folder: Path) -> tuple[list[tuple[BlockHash, int]], int]:
    """(hash, size) of whole files, oldest use first, and how many damaged ones were deleted."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    for left_over in sorted(scratch.iterdir()):
        left_over.unlink()
    found: list[tuple[int, BlockHash, int]] = []
    num_damaged = 0
    for path in sorted(folder.glob("??/??/*")):
        try:
            block_hash = bytes.fromhex(path.name)
            size, used_at = block_file.probe(path, block_hash)
            found.append((used_at, block_hash, size))
        except (block_file.DamagedFile, ValueError):
            path.unlink()
            num_damaged += 1
    return [(block_hash, size) for _, block_hash, size in sorted(found)], num_damaged


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
