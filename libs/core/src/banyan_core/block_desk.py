"""Blocks on behalf of other processes: imports, pins, leases, and the news of what is cached.

Commands come in an order that can be applied as it stands: an eviction is announced before the
block is written again.
"""

from __future__ import annotations

from collections.abc import Sequence

from banyan_core.block_manager import BlockManager, FilledBlock
from banyan_core.engine_messages import (
    BlockFact,
    BlocksEvicted,
    BlocksFilled,
    EngineCommand,
    ImportDone,
    ImportReady,
    ImportRefused,
    ImportWanted,
    Pinned,
    PinWanted,
    Release,
)


class BlockDesk:
    """Answers block facts with commands."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks

    def take(self, fact: BlockFact, headroom: int) -> list[EngineCommand]:
        """An import must leave `headroom` blocks to the sequences that run."""
        match fact:
            case Release():
                for lease_id in fact.lease_ids:
                    self._blocks.release(lease_id)
                return []
            case ImportWanted():
                return self._reserve(fact, headroom)
            case ImportDone():
                blocks = self._blocks.commit_import(fact.import_id, fact.imported)
                return self.filled(blocks, imported=True)
            case PinWanted():
                found = self._blocks.pin(fact.pin_id, fact.hashes)
                hashes, block_ids = tuple(h for h, _ in found), tuple(i for _, i in found)
                return [Pinned(fact.pin_id, hashes, block_ids)]

    def filled(
        self, blocks: Sequence[FilledBlock], *, imported: bool = False
    ) -> list[EngineCommand]:
        if not blocks:
            return []
        hashes = tuple(block.block_hash for block in blocks)
        return [BlocksFilled(hashes, tuple(block.block_id for block in blocks), imported)]

    def evicted(self) -> list[EngineCommand]:
        """What was dropped since the last call."""
        evicted = self._blocks.take_evicted()
        return [BlocksEvicted(evicted)] if evicted else []

    def _reserve(self, fact: ImportWanted, headroom: int) -> list[EngineCommand]:
        reserved = self._blocks.reserve(fact.import_id, fact.hashes, headroom)
        if reserved is None:
            reason = f"{len(fact.hashes)} blocks wanted, {self._blocks.num_available} available"
            return [ImportRefused(fact.import_id, reason)]
        ready = ImportReady(fact.import_id, tuple(reserved), tuple(reserved.values()))
        return [*self.evicted(), ready]
