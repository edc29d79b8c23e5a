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


class PageReader:
    """Reads pages of blocks and remembers their digests for as long as the blocks are here.

    A block whose memory changed after it filled no longer matches its digest, and whoever
    imports it will notice.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._digests: dict[BlockHash, tuple[bytes, ...]] = {}

    @property
    def num_layers(self) -> int:
        return self._runner.layout.num_layers

    @property
    def block_bytes(self) -> int:
        return self._runner.layout.token_bytes * self._runner.block_size

    def blocks_filled(self, hashes: Sequence[BlockHash], block_ids: Sequence[int]) -> None:
        for block_hash, block_id in zip(hashes, block_ids, strict=True):
            self._digests[block_hash] = tuple(
                page_digest(self._runner.export_page(block_id, layer))
                for layer in range(self.num_layers)
            )

    def blocks_evicted(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            self._digests.pop(block_hash, None)

    def read(self, block_hash: BlockHash, block_id: int, layer: int) -> kv_pb2.KvPage:
        """A page; its digest is the one of when the block filled, or now if it just does."""
        data = self._runner.export_page(block_id, layer)
        digests = self._digests.get(block_hash)
        return kv_pb2.KvPage(
            block_hash=block_hash,
            layer=layer,
            num_layers=self.num_layers,
            digest=digests[layer] if digests is not None else page_digest(data),
            data=data,
        )


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
