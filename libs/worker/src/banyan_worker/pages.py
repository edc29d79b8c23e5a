"""Pages of blocks on their way, each (block, layer) with the checksum taken when it filled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

from banyan.v1 import kv_pb2
from banyan_core.hashing import page_checksum, unpack
from banyan_core.runner import Runner
from banyan_core.types import BlockHash
from banyan_runtime.kv_pages import (
    CHECKSUM_BYTES,
    MESSAGE_BYTES,
    as_pages,
    pages_of,
    what_is_wrong,
)
from banyan_runtime.rpc import Code, RpcError

T = TypeVar("T")


class Pages:
    """Reads and writes pages of blocks; remembers their checksums while the blocks are here.

    A block whose memory changed after it filled no longer matches its checksums, and whoever
    imports it will notice. No page is summed twice: what was checked when it came, or sent
    before its block was full, is known already when the block fills.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._checksums: dict[BlockHash, bytes] = {}
        self._early: dict[int, dict[tuple[BlockHash, int], bytes]] = {}
        """Of pages of blocks that are not full yet, by block id; then by content and layer."""

    @property
    def num_layers(self) -> int:
        return self._runner.layout.num_layers

    @property
    def block_bytes(self) -> int:
        return self._runner.layout.token_bytes * self._runner.block_size

    def written(self, block_ids: Sequence[int]) -> None:
        """A step writes to these blocks: what was known of them no longer holds."""
        for block_id in block_ids:
            self._early.pop(block_id, None)

    def blocks_filled(self, hashes: Sequence[BlockHash], block_ids: Sequence[int]) -> None:
        for block_hash, block_id in zip(hashes, block_ids, strict=True):
            early = self._early.pop(block_id, {})
            self._checksums[block_hash] = b"".join(
                early.get((block_hash, layer))
                or page_checksum(self._runner.export_page(block_id, layer))
                for layer in range(self.num_layers)
            )

    def blocks_evicted(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            self._checksums.pop(block_hash, None)

    def read(
        self, message: kv_pb2.KvPages, block_hash: BlockHash, block_id: int, first: int, end: int
    ) -> int:
        """Add pages of layers `first` to `end`, exclusive, to a message; how many bytes they have.

        Their checksums are those of when the block filled, or of now if it just does.
        """
        pages = [self._runner.export_page(block_id, layer) for layer in range(first, end)]
        known = self._checksums.get(block_hash)
        if known is None:
            sums = [page_checksum(page) for page in pages]
            places = ((block_hash, layer) for layer in range(first, end))
            self._early.setdefault(block_id, {}).update(zip(places, sums, strict=True))
            checksums = b"".join(sums)
        else:
            checksums = known[first * CHECKSUM_BYTES : end * CHECKSUM_BYTES]
        data = b"".join(pages)
        message.layers.add(
            block_hash=block_hash,
            first_layer=first,
            num_layers=self.num_layers,
            page_bytes=[len(page) for page in pages],
            checksums=checksums,
            data=data,
        )
        return len(data)

    def write(self, part: kv_pb2.KvLayers, block_id: int) -> list[int]:
        """Write those pages that match their checksums and the layout; their layers."""
        if what_is_wrong(part) or part.num_layers != self.num_layers:
            return []
        written = []
        early = self._early.setdefault(block_id, {})
        for layer, (checksum, page) in enumerate(pages_of(part), part.first_layer):
            data = bytes(page)
            if page_checksum(data) != checksum:
                continue
            try:
                self._runner.import_page(block_id, layer, data)
            except ValueError:  # of another length than the layout's
                continue
            early[part.block_hash, layer] = checksum
            written.append(layer)
        return written


class MessageBuilder:
    """Gathers pages into messages of about 1 MiB. Who does not take layers gets pages."""

    def __init__(self, pages: Pages, takes_layers: bool) -> None:
        self._pages = pages
        self._takes_layers = takes_layers
        self._message = kv_pb2.KvPages()
        self._num_bytes = 0

    @property
    def is_full(self) -> bool:
        return self._num_bytes >= MESSAGE_BYTES

    @property
    def is_empty(self) -> bool:
        return not self._message.layers

    def add(self, block_hash: BlockHash, block_id: int, first: int, end: int) -> int:
        """Pages from layer `first` on, up to `end` or until it is full; the layer to go on with."""
        page_bytes = max(1, self._pages.block_bytes // self._pages.num_layers)
        num_fitting = max(1, (MESSAGE_BYTES - self._num_bytes) // page_bytes)
        end = min(end, first + num_fitting)
        self._num_bytes += self._pages.read(self._message, block_hash, block_id, first, end)
        return end

    def take(self) -> kv_pb2.KvPages:
        message, self._message, self._num_bytes = self._message, kv_pb2.KvPages(), 0
        return message if self._takes_layers else as_pages(message)


def parse_hashes(packed: bytes) -> tuple[BlockHash, ...]:
    """Raises RpcError INVALID when the bytes are no sequence of hashes."""
    try:
        return unpack(packed)
    except ValueError as error:
        raise RpcError(Code.INVALID, str(error)) from None


async def close_stream(stream: AsyncIterator[T]) -> None:
    """End a stream early, so that its handler is cancelled."""
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()
