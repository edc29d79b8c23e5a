"""The tier that is gone with the process: whole blocks, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from banyan_core.types import BlockHash
from banyan_kvstore.block import Block


@dataclass(frozen=True, slots=True)
class TierFigures:
    """A tier now, and what happened in it since the start."""

    tier: str
    num_blocks: int
    used_bytes: int
    limit_bytes: int
    num_hits: int
    num_evictions: int
    num_damaged: int = 0


class MemoryTier:
    """Blocks by hash, oldest use first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.num_hits = 0
        self.num_evictions = 0
        self._blocks: OrderedDict[BlockHash, Block] = OrderedDict()

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._blocks

    def hashes(self) -> tuple[BlockHash, ...]:
        return tuple(self._blocks)

    def get(self, block_hash: BlockHash) -> Block | None:
        block = self._blocks.get(block_hash)
        if block is not None:
            self._blocks.move_to_end(block_hash)
            self.num_hits += 1
        return block

    def peek(self, block_hash: BlockHash) -> Block:
        """A block that is here, without counting it as used."""
        return self._blocks[block_hash]

    def oldest_beyond(self, num_bytes: int) -> Block | None:
        """The block to move out before `num_bytes` more fit; None when they fit."""
        if self.used_bytes + num_bytes <= self.limit_bytes:
            return None
        return next(iter(self._blocks.values()))

    def put(self, block: Block) -> None:
        self._blocks[block.block_hash] = block
        self.used_bytes += block.num_bytes

    def evict(self, block_hash: BlockHash) -> None:
        self.used_bytes -= self._blocks.pop(block_hash).num_bytes
        self.num_evictions += 1

    def figures(self) -> TierFigures:
        return TierFigures(
            "memory",
            len(self._blocks),
            self.used_bytes,
            self.limit_bytes,
            self.num_hits,
            self.num_evictions,
        )
