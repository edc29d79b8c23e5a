"""The blocks of one Put that are not whole yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan.v1 import kv_pb2
from banyan_core.hashing import page_checksum
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_runtime.kv_pages import pages_of, what_is_wrong
from banyan_runtime.rpc import Code, RpcError

_Page = tuple[bytes, memoryview]
"""Checksum and bytes."""


@dataclass(slots=True)
class Upload:
    """A page whose checksum is wrong spoils its block. `reserved_bytes` are the caller's count."""

    reserved_bytes: int = 0
    num_rejected_pages: int = 0
    _pages: dict[BlockHash, list[_Page | None]] = field(default_factory=dict)
    _spoilt: dict[BlockHash, None] = field(default_factory=dict)
    _whole: list[Block] = field(default_factory=list)

    def add(self, part: kv_pb2.KvLayers) -> int:
        """How many bytes need not be kept: those of a block that is spoilt, or here already.

        Raises RpcError INVALID for a malformed part.
        """
        wrong = what_is_wrong(part)
        if wrong:
            raise RpcError(Code.INVALID, wrong)
        block_hash, pages = part.block_hash, pages_of(part)
        num_bad = sum(page_checksum(data) != checksum for checksum, data in pages)
        if num_bad:
            self.num_rejected_pages += num_bad
            return sum(part.page_bytes) + self._spoil(block_hash)
        if block_hash in self._spoilt:
            return sum(part.page_bytes)
        if len(pages) == part.num_layers and block_hash not in self._pages:
            sizes = tuple(part.page_bytes)
            self._whole.append(Block(block_hash, sizes, part.checksums, part.data))
            return 0
        return self._gather(part, pages)

    def _gather(self, part: kv_pb2.KvLayers, pages: list[_Page]) -> int:
        here = self._pages.setdefault(part.block_hash, [None] * part.num_layers)
        if len(here) != part.num_layers:
            raise RpcError(Code.INVALID, f"num_layers is {part.num_layers} after {len(here)}")
        num_doubled_bytes = 0
        for layer, page in enumerate(pages, part.first_layer):
            if here[layer] is None:
                here[layer] = page
            else:
                num_doubled_bytes += len(page[1])
        there = [page for page in here if page is not None]
        if len(there) == len(here):
            del self._pages[part.block_hash]
            self._whole.append(_joined(part.block_hash, there))
        return num_doubled_bytes

    def _spoil(self, block_hash: BlockHash) -> int:
        """Give up this block; how many bytes of it were here."""
        self._spoilt[block_hash] = None
        pages = self._pages.pop(block_hash, [])
        return sum(len(page[1]) for page in pages if page is not None)

    def whole(self) -> list[Block]:
        """Take out the blocks of which every page is here, in the order in which they were."""
        blocks, self._whole = self._whole, []
        return blocks


def _joined(block_hash: BlockHash, pages: list[_Page]) -> Block:
    return Block(
        block_hash,
        tuple(len(data) for _, data in pages),
        b"".join(checksum for checksum, _ in pages),
        b"".join(data for _, data in pages),
    )
