"""Pages on the wire: one (block, layer) each, with the digest taken when the block filled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

from banyan.v1 import kv_pb2
from banyan_core.hashing import page_digest, unpack
from banyan_core.runner import Runner
from banyan_core.types import BlockHash
from banyan_runtime.rpc import Code, RpcError

MESSAGE_BYTES = 1 << 20

T = TypeVar("T")


class Pages:
    """Reads and writes pages of blocks; remembers their digests while the blocks are here.

    A block whose memory changed after it filled no longer matches its digest, and whoever
    imports it will notice. No page is digested twice: what was checked when it came, or sent
    before its block was full, is known already when the block fills.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._digests: dict[BlockHash, tuple[bytes, ...]] = {}
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
            self._digests[block_hash] = tuple(
                early.get((block_hash, layer))
                or page_digest(self._runner.export_page(block_id, layer))
                for layer in range(self.num_layers)
            )

    def blocks_evicted(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            self._digests.pop(block_hash, None)

    def read(self, block_hash: BlockHash, block_id: int, layer: int) -> kv_pb2.KvPage:
        """A page; its digest is the one of when the block filled, or now if it just does."""
        data = self._runner.export_page(block_id, layer)
        digests = self._digests.get(block_hash)
        if digests is None:
            digest = page_digest(data)
            self._early.setdefault(block_id, {})[block_hash, layer] = digest
        else:
            digest = digests[layer]
        return kv_pb2.KvPage(
            block_hash=block_hash,
            layer=layer,
            num_layers=self.num_layers,
            digest=digest,
            data=data,
        )

    def write(self, page: kv_pb2.KvPage, block_id: int) -> None:
        """A page that matches its digest. Raises ValueError when its length is not the layout's."""
        self._runner.import_page(block_id, page.layer, page.data)
        self._early.setdefault(block_id, {})[page.block_hash, page.layer] = page.digest


class MessageBuilder:
    """Gathers pages into messages of about 1 MiB."""

    def __init__(self) -> None:
        self._message = kv_pb2.KvPages()
        self._num_bytes = 0

    @property
    def is_full(self) -> bool:
        return self._num_bytes >= MESSAGE_BYTES

    @property
    def is_empty(self) -> bool:
        return not self._message.pages

    def add(self, page: kv_pb2.KvPage) -> None:
        self._message.pages.append(page)
        self._num_bytes += len(page.data)

    def take(self) -> kv_pb2.KvPages:
        message, self._message, self._num_bytes = self._message, kv_pb2.KvPages(), 0
        return message


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
