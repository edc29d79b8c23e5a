"""Our worker and a store of another version."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from tests.kvstore.stored import block, layers_of
from tests.versions.peer import Peer
from tests.versions.relay import serve_relay

from banyan.v1 import kv_pb2
from banyan_core.types import BlockHash
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.kv_pages import as_pages, layers_in
from banyan_runtime.kv_pages import pages_of as pages_of_part
from banyan_text.card import echo_card
from banyan_worker.options import WorkerOptions
from banyan_worker.store_client import Offer, StoreClient, Stored


async def test_our_worker_uses_their_store(peer: Peer, network: GrpcNetwork) -> None:
    """Only who says so is given layers; what comes back is read either way."""
    relay = await serve_relay(network, peer.stubs, "KvStore", peer.address("kvstore"))
    one = block(BlockHash(peer.stubs.name.encode().ljust(16, b"w")))
    card, logger = echo_card(16, "fast"), logging.getLogger("test")
    directory = StaticDirectory({"kvstore": (relay.address,)})
    store = StoreClient(network, directory, SystemClock(), card, WorkerOptions(), logger)
    stored = await store.stored(relay.address, [one.block_hash])
    assert stored == Stored(0, takes_layers=peer.stubs.name == "next")
    message = kv_pb2.KvPages(layers=[layers_of(one)])

    async def upload() -> AsyncIterator[kv_pb2.KvPages]:
        yield message if stored.takes_layers else as_pages(message)

    assert await store.put(relay.address, upload()) == 1
    fetched = store.fetch(Offer(relay.address, (one.block_hash,)))
    parts = [part async for answer in fetched for part in layers_in(answer)]
    assert [page for part in parts for page in pages_of_part(part)] == list(one.pages())
    await relay.stop(0.0)
