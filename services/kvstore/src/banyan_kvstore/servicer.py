"""The store's verbs: Has, Get, Put, Stats over the tiers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from banyan.v1 import kv_pb2
from banyan_core.hashing import HASH_BYTES, unpack
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block, Page
from banyan_kvstore.block_file import MAX_LAYERS
from banyan_kvstore.kv_events import StoreEvents
from banyan_kvstore.metrics import KvStoreMetrics
from banyan_kvstore.tiers import Tiers
from banyan_runtime import wire
from banyan_runtime.page_traces import traced_pages
from banyan_runtime.rpc import (
    Code,
    Handler,
    RpcError,
    serve_stream,
    serve_unary,
    serve_upload,
)
from banyan_runtime.tracing import NO_TRACING, Tracing

MESSAGE_BYTES = 1 << 20
MAX_INFLIGHT_BYTES = 64 << 20


class KvStoreServicer:
    """`epoch` and `is_indexing` are for Stats."""

    def __init__(
        self,
        tiers: Tiers,
        events: StoreEvents,
        metrics: KvStoreMetrics,
        epoch: int,
        is_indexing: Callable[[], bool],
        max_inflight_bytes: int = MAX_INFLIGHT_BYTES,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._tracing = tracing
        self._tiers = tiers
        self._events = events
        self._metrics = metrics
        self._epoch = epoch
        self._is_indexing = is_indexing
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0

    def handlers(self) -> tuple[Handler, ...]:
        return (
            serve_unary(wire.STORE_HAS, self.has),
            serve_stream(wire.STORE_GET, self.get),
            serve_upload(wire.STORE_PUT, self.put),
            serve_unary(wire.STORE_STATS, self.stats),
        )

    async def has(self, request: kv_pb2.HasRequest) -> kv_pb2.HasResponse:
        hashes = _hashes(request.block_hashes)
        return kv_pb2.HasResponse(num_prefix_blocks=self._tiers.num_prefix_blocks(hashes))

    def get(self, request: kv_pb2.GetRequest) -> AsyncGenerator[kv_pb2.KvPages, None]:
        """Whole blocks in the order asked, about 1 MiB a message; ends at the first absent one."""
        hashes = _hashes(request.block_hashes)
        asked = {"banyan.num_blocks": len(hashes)}
        return traced_pages(self._tracing, "kvstore get", asked, self._read(hashes))

    async def _read(self, hashes: Sequence[BlockHash]) -> AsyncGenerator[kv_pb2.KvPages, None]:
        message, num_bytes = kv_pb2.KvPages(), 0
        for block_hash in hashes:
            block, change = await self._tiers.get(block_hash)
            self._events.changed(change)
            if block is None:
                break
            for layer, page in enumerate(block.pages):
                if num_bytes and num_bytes + len(page.data) > MESSAGE_BYTES:
                    yield message
                    message, num_bytes = kv_pb2.KvPages(), 0
                message.pages.append(_page_to_pb(block, layer, page))
                num_bytes += len(page.data)
        if num_bytes:
            yield message

    async def put(self, requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        """Store the blocks that came whole. A page whose digest is wrong spoils its block."""
        upload = _Upload()
        response = kv_pb2.PutResponse()
        try:
            async for message in requests:
                for page in message.pages:
                    self._reserve(upload, len(page.data))
                    response.num_rejected_pages += self._take(upload, page)
                for block in upload.whole():
                    change = await self._tiers.put(block)
                    self._events.changed(change)
                    response.num_stored_blocks += len(change.stored)
                    self._give_back(upload, block.num_bytes)
        finally:
            self._give_back(upload, upload.reserved_bytes)
        return response

    async def stats(self, _: kv_pb2.StatsRequest) -> kv_pb2.StatsResponse:
        tiers = [
            kv_pb2.TierStats(
                tier=figures.tier,
                num_blocks=figures.num_blocks,
                used_bytes=figures.used_bytes,
                limit_bytes=figures.limit_bytes,
            )
            for figures in self._tiers.figures()
        ]
        return kv_pb2.StatsResponse(tiers=tiers, epoch=self._epoch, indexing=self._is_indexing())

    def _take(self, upload: _Upload, page: kv_pb2.KvPage) -> int:
        """Add a page to its block. 1 when it was rejected, else 0."""
        _check_page(page)
        kept = Page(page.digest, page.data)
        if not kept.intact:
            self._metrics.rejected_pages.inc()
            self._give_back(upload, len(page.data) + upload.spoil(page.block_hash))
            return 1
        if not upload.add(page.block_hash, page.layer, page.num_layers, kept):
            self._give_back(upload, len(page.data))
        return 0

    def _reserve(self, upload: _Upload, num_bytes: int) -> None:
        if self._inflight_bytes + num_bytes > self._max_inflight_bytes:
            self._metrics.refused_puts.inc()
            raise RpcError(Code.EXHAUSTED, f"{self._inflight_bytes} bytes are on their way already")
        self._inflight_bytes += num_bytes
        upload.reserved_bytes += num_bytes

    def _give_back(self, upload: _Upload, num_bytes: int) -> None:
        self._inflight_bytes -= num_bytes
        upload.reserved_bytes -= num_bytes


@dataclass(slots=True)
class _Upload:
    """The blocks of one Put that are not whole yet."""

    reserved_bytes: int = 0
    pages: dict[BlockHash, list[Page | None]] = field(default_factory=dict)
    spoilt: dict[BlockHash, None] = field(default_factory=dict)

    def add(self, block_hash: BlockHash, layer: int, num_layers: int, page: Page) -> bool:
        """False when the page is not needed: its block is spoilt, or it was here already."""
        if block_hash in self.spoilt:
            return False
        pages = self.pages.setdefault(block_hash, [None] * num_layers)
        if len(pages) != num_layers:
            raise RpcError(Code.INVALID, f"num_layers is {num_layers} after {len(pages)}")
        if pages[layer] is not None:
            return False
        pages[layer] = page
        return True

    def spoil(self, block_hash: BlockHash) -> int:
        """Give up this block; how many bytes of it were here."""
        self.spoilt[block_hash] = None
        pages = self.pages.pop(block_hash, [])
        return sum(len(page.data) for page in pages if page is not None)

    def whole(self) -> list[Block]:
        """Take out the blocks of which every page is here, in the order of their first pages."""
        blocks = []
        for block_hash, pages in list(self.pages.items()):
            there = tuple(page for page in pages if page is not None)
            if len(there) == len(pages):
                blocks.append(Block(block_hash, there))
                del self.pages[block_hash]
        return blocks


def _hashes(packed: bytes) -> Sequence[BlockHash]:
    try:
        return unpack(packed)
    except ValueError as error:
        raise RpcError(Code.INVALID, str(error)) from None


def _check_page(page: kv_pb2.KvPage) -> None:
    if len(page.block_hash) != HASH_BYTES:
        raise RpcError(Code.INVALID, f"block_hash has {len(page.block_hash)} bytes, expected 16")
    if not 0 < page.num_layers <= MAX_LAYERS:
        raise RpcError(Code.INVALID, f"num_layers is {page.num_layers}, expected 1 to {MAX_LAYERS}")
    if page.layer >= page.num_layers:
        raise RpcError(Code.INVALID, f"layer {page.layer} of {page.num_layers} layers")
    if not page.data:
        raise RpcError(Code.INVALID, "data is empty")


def _page_to_pb(block: Block, layer: int, page: Page) -> kv_pb2.KvPage:
    return kv_pb2.KvPage(
        block_hash=block.block_hash,
        layer=layer,
        num_layers=len(block.pages),
        digest=page.digest,
        data=page.data,
    )
