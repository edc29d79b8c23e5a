"""Blocks, and stores in one process on virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry

from banyan.v1 import events_pb2, kv_pb2
from banyan_core.hashing import pack, page_checksum, page_digest
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime import wire
from banyan_runtime.bus import KV_EVENTS, EventProducer, Headers
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.offload import InlineOffload
from banyan_runtime.virtual_loop import VirtualLoop, run_virtual

T = TypeVar("T")

BIG = 1 << 30
SOON_S = 0.5
"""By when what was said on the bus is in the index."""
INDEX_LEASE_S = 3.5
"""By when another store writes the index in place of one that died."""


def block(block_hash: BlockHash, page_bytes: int = 100, num_layers: int = 2) -> Block:
    """A block whose content follows from its hash."""
    pages = [
        ((block_hash + bytes([layer]) * 4) * page_bytes)[:page_bytes] for layer in range(num_layers)
    ]
    checksums = b"".join(map(page_checksum, pages))
    return Block(block_hash, (page_bytes,) * num_layers, checksums, b"".join(pages))


def pages_of(blocks: Iterable[Block]) -> list[kv_pb2.KvPage]:
    """As a peer of version 0.1 sends and gets them."""
    return [
        kv_pb2.KvPage(
            block_hash=one.block_hash,
            layer=layer,
            num_layers=len(one.page_bytes),
            digest=page_digest(page),
            data=bytes(page),
        )
        for one in blocks
        for layer, (_, page) in enumerate(one.pages())
    ]


def layers_of(one: Block, first: int = 0, end: int | None = None) -> kv_pb2.KvLayers:
    """Pages of layers `first` to `end`, exclusive."""
    pages = list(one.pages())[first:end]
    return kv_pb2.KvLayers(
        block_hash=one.block_hash,
        first_layer=first,
        num_layers=len(one.page_bytes),
        page_bytes=[len(page) for _, page in pages],
        checksums=b"".join(checksum for checksum, _ in pages),
        data=b"".join(page for _, page in pages),
    )


async def uploading(pages: Sequence[kv_pb2.KvPage]) -> AsyncIterator[kv_pb2.KvPages]:
    """One page a message."""
    for page in pages:
        yield kv_pb2.KvPages(pages=[page])


class Store:
    """One store, the network it lives on, and what a worker would say to it."""

    def __init__(
        self, stored: Stored, store_id: str, tiers: Tiers, index: MemoryKvIndex, **options: int
    ) -> None:
        self.store_id = store_id
        self.is_ended = False
        self.registry = CollectorRegistry()
        self.bus = MemoryBus(stored.broker)
        self.index = index
        self._stored = stored
        self._network = MemoryNetwork(stored.mesh, store_id)
        self._address = f"{store_id}:1"
        self.service = KvStoreService(
            store_id,
            self._address,
            self._network,
            self.bus,
            self.index,
            stored.clock,
            tiers,
            KvStoreOptions(**options),  # type: ignore[arg-type] # only its counts are set
            logger=logging.getLogger("test"),
            registry=self.registry,
        )

    async def put(self, *blocks: Block) -> kv_pb2.PutResponse:
        return await self.put_pages(pages_of(blocks))

    async def put_pages(self, pages: Sequence[kv_pb2.KvPage]) -> kv_pb2.PutResponse:
        channel = self._stored.worker.channel(self._address)
        return await channel.upload(wire.STORE_PUT, uploading(pages), 5.0)

    async def get(self, *hashes: BlockHash) -> list[kv_pb2.KvPages]:
        request = kv_pb2.GetRequest(block_hashes=pack(hashes))
        stream = self._stored.worker.channel(self._address).stream(wire.STORE_GET, request, 5.0)
        return [message async for message in stream]

    async def put_layers(self, *parts: kv_pb2.KvLayers) -> kv_pb2.PutResponse:
        """All in one message."""

        async def message() -> AsyncIterator[kv_pb2.KvPages]:
            yield kv_pb2.KvPages(layers=parts)

        channel = self._stored.worker.channel(self._address)
        return await channel.upload(wire.STORE_PUT, message(), 5.0)

    async def get_layers(self, *hashes: BlockHash) -> list[kv_pb2.KvPages]:
        request = kv_pb2.GetRequest(block_hashes=pack(hashes), takes_layers=True)
        stream = self._stored.worker.channel(self._address).stream(wire.STORE_GET, request, 5.0)
        return [message async for message in stream]

    async def has(self, *hashes: BlockHash) -> int:
        request = kv_pb2.HasRequest(block_hashes=pack(hashes))
        channel = self._stored.worker.channel(self._address)
        return (await channel.unary(wire.STORE_HAS, request, 5.0)).num_prefix_blocks

    async def stats(self) -> kv_pb2.StatsResponse:
        channel = self._stored.worker.channel(self._address)
        return await channel.unary(wire.STORE_STATS, kv_pb2.StatsRequest(), 5.0)

    def figure(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"banyan_kvstore_{name}", labels)

    async def stop(self) -> None:
        self.is_ended = True
        await self.service.stop(1.0)
        await self.bus.close()

    async def crash(self) -> None:
        """Cut the ports, then end the tasks: nothing they do afterwards is seen."""
        self.is_ended = True
        self.index.cut()
        self.bus.cut()
        self._stored.mesh.crash(self.store_id)
        await self.service.stop(0.0)


class _LossyBus(MemoryBus):
    """Its buffer is full when a test says so."""

    is_full = False

    def publish(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> bool:
        return not self.is_full and super().publish(topic, key, value, headers)


class Stored:
    """What outlives the stores of one test."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.clock = loop.clock
        self.mesh = MemoryMesh()
        self.broker = MemoryBroker()
        self.index_server = MemoryIndexServer(self.clock)
        self.index = MemoryKvIndex(self.index_server)
        self.worker = MemoryNetwork(self.mesh, "worker-0")
        self._worker_bus = _LossyBus(self.broker)
        self._stores: list[Store] = []

    async def store(
        self,
        store_id: str = "kvstore-0",
        memory_bytes: int = BIG,
        folder: Path | None = None,
        disk_bytes: int = BIG,
        index: MemoryKvIndex | None = None,
        **options: int,
    ) -> Store:
        disk = None if folder is None else DiskTier(folder, disk_bytes, InlineOffload())
        tiers = Tiers(MemoryTier(memory_bytes), disk)
        own = index or MemoryKvIndex(self.index_server)
        store = Store(self, store_id, tiers, own, **options)
        self._stores.append(store)
        await store.service.start()
        return store

    def producer(self, name: str, epoch: int = 1) -> EventProducer:
        """The voice of a worker."""
        return EventProducer(self._worker_bus, self.clock, name, epoch)

    def lose_next(self, producer: EventProducer, event: events_pb2.Event) -> None:
        """The producer says it, and nobody hears."""
        self._worker_bus.is_full = True
        producer.emit(KV_EVENTS, event)
        self._worker_bus.is_full = False

    async def lookup(self, *hashes: BlockHash) -> dict[str, int]:
        return dict(await self.index.lookup(hashes))

    async def stop(self) -> None:
        for store in self._stores:
            if not store.is_ended:
                await store.stop()
        await self._worker_bus.close()
        for host in list(self.mesh.hosts):
            self.mesh.crash(host)
        await asyncio.sleep(0.01)


def writers(*stores: Store) -> list[str]:
    """Those that write the index, by what they say themselves."""
    return [store.store_id for store in stores if store.figure("indexing") == 1]


def blocks_stored(hashes: Sequence[BlockHash]) -> events_pb2.Event:
    payload = events_pb2.BlocksStored(block_hashes=pack(hashes), tier="worker")
    return events_pb2.Event(blocks_stored=payload)


def blocks_removed(hashes: Sequence[BlockHash]) -> events_pb2.Event:
    payload = events_pb2.BlocksRemoved(block_hashes=pack(hashes), tier="worker")
    return events_pb2.Event(blocks_removed=payload)


def blocks_snapshot(hashes: Sequence[BlockHash]) -> events_pb2.Event:
    payload = events_pb2.BlocksSnapshot(
        block_hashes=pack(hashes), tier="worker", chunk=0, num_chunks=1
    )
    return events_pb2.Event(blocks_snapshot=payload)


def virtually(test: Callable[[Stored], Awaitable[T]], seed: int = 0) -> T:
    """Run `test` on virtual time, and end every store after it."""

    async def main() -> T:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        stored = Stored(loop)
        try:
            return await test(stored)
        finally:
            await stored.stop()

    return run_virtual(main, seed)
