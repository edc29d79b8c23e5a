"""Tiers over a folder, opened and asked without an event loop of the test's own."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from tests.core.clusters import hashes
from tests.kvstore.stored import block

from banyan_core.types import BlockHash
from banyan_kvstore import block_file
from banyan_kvstore.block import Block
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.tiers import Change, Tiers
from banyan_runtime.offload import InlineOffload
from banyan_runtime.virtual_loop import run_virtual

T = TypeVar("T")
H = hashes(10)
ONE = block(H[0]).num_bytes
FILE = block_file.file_bytes(block(H[0]))


def now(coro: Coroutine[Any, Any, T]) -> T:
    async def main() -> T:
        return await coro

    return run_virtual(main)


def opened(memory_bytes: int, folder: Path | None = None, disk_bytes: int = 1 << 30) -> Tiers:
    disk = None if folder is None else DiskTier(folder, disk_bytes, InlineOffload())
    tiers = Tiers(MemoryTier(memory_bytes), disk)
    now(tiers.open())
    return tiers


def put(tiers: Tiers, *wanted: BlockHash) -> Change:
    changes = [now(tiers.put(block(block_hash))) for block_hash in wanted]
    return changes[-1]


def get(tiers: Tiers, block_hash: BlockHash) -> Block | None:
    return now(tiers.get(block_hash))[0]


def path_of(folder: Path, block_hash: BlockHash) -> Path:
    name = block_hash.hex()
    return folder / "blocks" / name[:2] / name


def file_sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("blocks/??/*")]
