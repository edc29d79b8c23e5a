"""A block as the store keeps it: the pages of all its layers, each with its digest."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.hashing import page_digest
from banyan_core.types import BlockHash


@dataclass(frozen=True, slots=True)
class Page:
    """K then V of one block in one layer, and the digest its producer took."""

    digest: bytes
    data: bytes

    @property
    def intact(self) -> bool:
        return page_digest(self.data) == self.digest


@dataclass(frozen=True, slots=True)
class Block:
    """`pages[l]` belongs to layer l."""

    block_hash: BlockHash
    pages: tuple[Page, ...]

    @property
    def num_bytes(self) -> int:
        return sum(len(page.data) for page in self.pages)
