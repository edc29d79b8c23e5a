"""A block as the store keeps it: the pages of all its layers, each with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from banyan_core.hashing import page_checksum
from banyan_core.types import BlockHash
from banyan_runtime.kv_pages import split


@dataclass(frozen=True, slots=True)
class Block:
    """`data` is its pages end to end, of `page_bytes` each; `checksums` has 16 bytes for each."""

    block_hash: BlockHash
    page_bytes: tuple[int, ...]
    checksums: bytes
    data: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def pages(self) -> Iterator[tuple[bytes, memoryview]]:
        """Checksum and bytes, by layer."""
        yield from split(self.checksums, self.page_bytes, self.data)

    @property
    def intact(self) -> bool:
        return all(page_checksum(page) == checksum for checksum, page in self.pages())
