"""The tier that survives a restart: a file per block in one of 256 folders.

The files are the truth; the sizes kept here are found again by a scan. All I/O is offloaded, what
belongs to one call at once: a hop to another thread costs as much as the file of a small block.
"""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from banyan_core.types import BlockHash
from banyan_kvstore import block_file
from banyan_kvstore.block import Block
from banyan_kvstore.memory_tier import TierFigures
from banyan_runtime.offload import Offload

BLOCKS = "blocks"
SCRATCH = "scratch"
"""The folder of what is being written: one file at a time, for puts do not overlap."""


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
        past_limit = [self._path(block_hash) for block_hash in self._make_room(0)]
        await self._offload.run(_unlink, past_limit)

    async def get(self, block_hash: BlockHash) -> Block | None:
        """The block, whole; a damaged or unreadable file is dropped and counted."""
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

    async def put(self, *blocks: Block) -> tuple[BlockHash, ...]:
        """Store them in turn, and answer what had to go: of them, too, what cannot be kept."""
        gone: list[BlockHash] = []
        writes: list[_Write] = []
        for block in blocks:
            size = block_file.file_bytes(block)
            if size > self.limit_bytes:
                gone.append(block.block_hash)
                continue
            oldest = self._make_room(size)
            gone += oldest
            self._sizes[block.block_hash] = size
            self.used_bytes += size  # before the write: a bound that only holds afterwards is none
            unwanted = [self._path(block_hash) for block_hash in oldest]
            writes.append(_Write(block, self._path(block.block_hash), unwanted))
        scratch = self._folder / SCRATCH / "block"
        for failed in await self._offload.run(_write_all, writes, scratch):
            self.used_bytes -= self._sizes.pop(failed, 0)
            gone.append(failed)
        return tuple(dict.fromkeys(gone))

    def _make_room(self, num_bytes: int) -> list[BlockHash]:
        """Forget the oldest until so many bytes are free; their files are still to go."""
        evicted = []
        while self._sizes and self.used_bytes + num_bytes > self.limit_bytes:
            block_hash, size = self._sizes.popitem(last=False)
            self.used_bytes -= size
            self.num_evictions += 1
            evicted.append(block_hash)
        return evicted

    async def _drop(self, block_hash: BlockHash) -> None:
        self.used_bytes -= self._sizes.pop(block_hash, 0)
        await self._offload.run(_unlink, [self._path(block_hash)])

    def _path(self, block_hash: BlockHash) -> Path:
        name = block_hash.hex()
        return Path(f"{self._folder}/{BLOCKS}/{name[:2]}/{name}")

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


@dataclass(frozen=True, slots=True)
class _Write:
    """A block that goes to `path`, for which the `unwanted` files make room."""

    block: Block
    path: Path
    unwanted: list[Path]


def _write_all(writes: list[_Write], scratch: Path) -> list[BlockHash]:
    """Those that could not be written."""
    failed = []
    for each in writes:
        reused, others = each.unwanted[:1], each.unwanted[1:]
        try:
            _unlink(others)
            block_file.write(each.path, each.block, scratch, *reused)
        except OSError:
            failed.append(each.block.block_hash)
            with suppress(OSError):
                _unlink(each.unwanted)
    return failed


def _scan(folder: Path) -> tuple[list[tuple[BlockHash, int]], int]:
    """(hash, size) of whole files, oldest use first, and how many damaged ones were deleted.

    What version 0.1 left, in 65,536 folders, is deleted: it had its blocks in another format.
    """
    for old in sorted(folder.glob("??")):
        shutil.rmtree(old)
    scratch = folder / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    for left_over in sorted(scratch.iterdir()):
        left_over.unlink()
    found: list[tuple[int, BlockHash, int]] = []
    num_damaged = 0
    for path in sorted(folder.glob(f"{BLOCKS}/??/*")):
        try:
            block_hash = bytes.fromhex(path.name)
            size, used_at = block_file.probe(path, block_hash)
            found.append((used_at, block_hash, size))
        except (block_file.DamagedFile, ValueError):
            path.unlink()
            num_damaged += 1
    return [(block_hash, size) for _, block_hash, size in sorted(found)], num_damaged


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
