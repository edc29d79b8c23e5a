"""The store's verbs: Has, Get, Put, Stats over the tiers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

from banyan.v1 import kv_pb2
from banyan_core.hashing import unpack
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_kvstore.kv_events import StoreEvents
from banyan_kvstore.metrics import KvStoreMetrics
from banyan_kvstore.tiers import Tiers
from banyan_kvstore.upload import Upload
from banyan_runtime import wire
from banyan_runtime.kv_pages import CHECKSUM_BYTES, MESSAGE_BYTES, as_pages, layers_in
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
        return kv_pb2.HasResponse(
            num_prefix_blocks=self._tiers.num_prefix_blocks(hashes), takes_layers=True
        )

    def get(self, request: kv_pb2.GetRequest) -> AsyncGenerator[kv_pb2.KvPages, None]:
        """Whole blocks in the order asked, about 1 MiB a message; ends at the first absent one."""
        hashes = _hashes(request.block_hashes)
        asked = {"banyan.num_blocks": len(hashes)}
        messages = self._read(hashes, request.takes_layers)
        return traced_pages(self._tracing, "kvstore get", asked, messages)

    async def _read(
        self, hashes: Sequence[BlockHash], takes_layers: bool
    ) -> AsyncGenerator[kv_pb2.KvPages, None]:
        message, num_bytes = kv_pb2.KvPages(), 0
        for block_hash in hashes:
            block, change = await self._tiers.get(block_hash)
            self._events.changed(change)
            if block is None:
                break
            for first, end in _parts(block):
                size = sum(block.page_bytes[first:end])
                if num_bytes and num_bytes + size > MESSAGE_BYTES:
                    yield message if takes_layers else as_pages(message)
                    message, num_bytes = kv_pb2.KvPages(), 0
                _add(message, block, first, end)
                num_bytes += size
        if num_bytes:
            yield message if takes_layers else as_pages(message)

    async def put(self, requests: AsyncIterator[kv_pb2.KvPages]) -> kv_pb2.PutResponse:
        """Store the blocks that came whole. A page whose checksum is wrong spoils its block."""
        upload = Upload()
        response = kv_pb2.PutResponse()
        try:
            async for message in requests:
                for part in layers_in(message):
                    self._reserve(upload, sum(part.page_bytes))
                    self._give_back(upload, upload.add(part))
                for block in upload.whole():
                    change = await self._tiers.put(block)
                    self._events.changed(change)
                    response.num_stored_blocks += len(change.stored)
                    self._give_back(upload, block.num_bytes)
        finally:
            self._give_back(upload, upload.reserved_bytes)
            self._metrics.rejected_pages.inc(upload.num_rejected_pages)
        response.num_rejected_pages = upload.num_rejected_pages
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

    def _reserve(self, upload: Upload, num_bytes: int) -> None:
        if self._inflight_bytes + num_bytes > self._max_inflight_bytes:
            self._metrics.refused_puts.inc()
            raise RpcError(Code.EXHAUSTED, f"{self._inflight_bytes} bytes are on their way already")
        self._inflight_bytes += num_bytes
        upload.reserved_bytes += num_bytes

    def _give_back(self, upload: Upload, num_bytes: int) -> None:
        self._inflight_bytes -= num_bytes
        upload.reserved_bytes -= num_bytes


def _hashes(packed: bytes) -> Sequence[BlockHash]:
    try:
        return unpack(packed)
    except ValueError as error:
        raise RpcError(Code.INVALID, str(error)) from None


def _parts(block: Block) -> Iterator[tuple[int, int]]:
    """Runs of its layers (first, end) that fit into a message each."""
    first = num_bytes = 0
    for layer, size in enumerate(block.page_bytes):
        if num_bytes and num_bytes + size > MESSAGE_BYTES:
            yield first, layer
            first, num_bytes = layer, 0
        num_bytes += size
    yield first, len(block.page_bytes)


def _add(message: kv_pb2.KvPages, block: Block, first: int, end: int) -> None:
    start = sum(block.page_bytes[:first])
    size = sum(block.page_bytes[first:end])
    message.layers.add(
        block_hash=block.block_hash,
        first_layer=first,
        num_layers=len(block.page_bytes),
        page_bytes=block.page_bytes[first:end],
        checksums=block.checksums[first * CHECKSUM_BYTES : end * CHECKSUM_BYTES],
        data=block.data[start : start + size],
    )
