"""CPU time of a KV block on its way into the store and out again, by process.

A mesh of its own, of which only the kvstore has work; its tiers are so small that both are full
before anything is counted. It is given blocks in the shape of `disaggregation.py` (24 layers, pages
of 16 KiB) by a worker's own `Offloader` and `Pages`, which run here, over a pool without a model.
CPU time is hardly touched by what else the machine does.

    python load-tests/offload.py [--blocks 480] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch

from banyan_core.types import BlockHash, ModelCard, equal_layers
from banyan_engine.paged_kv import PagedKv
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.freed_memory import keep_freed_memory
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.kv_pages import layers_in
from banyan_worker.offloader import Offloader
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import Pages
from banyan_worker.step_loop import StepLoop
from banyan_worker.store_client import Offer, StoreClient
from overhead.processes import Mesh, mesh, tree_cpu_s

BLOCK_SIZE = 16
LAYOUT = equal_layers(24, 4, 64, "bfloat16")
BLOCK_BYTES = LAYOUT.token_bytes * BLOCK_SIZE
TIERS = {"MEMORY_BYTES": str(64 << 20), "DISK_BYTES": str(128 << 20)}
BUSY = ("kvstore", "valkey")
LOGGER = logging.getLogger("offload")
POLL_S = 0.02

Figures = dict[str, float]


class Pool(PagedKv):
    """As much of a runner as moves pages."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(LAYOUT, num_blocks, BLOCK_SIZE)
        for layer in range(LAYOUT.num_layers):
            page = torch.randint(0, 256, (LAYOUT.page_bytes(layer, BLOCK_SIZE),), dtype=torch.uint8)
            for block_id in range(num_blocks):
                self.import_page(block_id, layer, page.numpy().tobytes())


class Pins:
    """Of a step loop what an offloader asks for: all its blocks are here and stay."""

    def __init__(self, blocks: Mapping[BlockHash, int]) -> None:
        self._blocks = blocks

    async def pin(self, _: str, hashes: Sequence[BlockHash]) -> Mapping[BlockHash, int]:
        return {block_hash: self._blocks[block_hash] for block_hash in hashes}

    def feed(self, *_: object) -> None:
        return


class Worker:
    """The parts of a worker that KV passes through, with `num_blocks` blocks in its pool."""

    def __init__(self, network: GrpcNetwork, address: str, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.pages = Pages(cast(Any, Pool(num_blocks)))
        directory = StaticDirectory({"kvstore": (address,)})
        card = cast(ModelCard, _Card(LAYOUT, BLOCK_SIZE))
        options = WorkerOptions()
        self.store = StoreClient(network, directory, SystemClock(), card, options, LOGGER)
        self.offloader = Offloader(self.store, self.pages, options)
        self.address = address

    async def offload(self, hashes: Sequence[BlockHash]) -> None:
        """Returns when the store has them."""
        blocks = {block_hash: number for number, block_hash in enumerate(hashes)}
        goal = self.offloader.num_stored_blocks + len(hashes)
        task = asyncio.create_task(self.offloader.run(cast(StepLoop, Pins(blocks))))
        self.offloader.blocks_filled(hashes)
        while self.offloader.num_stored_blocks < goal:
            assert not self.offloader.num_dropped_blocks, "the store broke off"
            await asyncio.sleep(POLL_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def fetch(self, hashes: Sequence[BlockHash]) -> int:
        """How many pages came."""
        num_pages = 0
        ids = {block_hash: number for number, block_hash in enumerate(hashes)}
        async for message in self.store.fetch(Offer(self.address, tuple(hashes))):
            for part in layers_in(message):
                num_pages += len(self.pages.write(part, ids[part.block_hash]))
        return num_pages


@dataclass(frozen=True, slots=True)
class _Card:
    kv_layout: object
    block_size: int


def cpu_s(running: Mesh) -> Figures:
    return {name: tree_cpu_s(running.pids[name]) for name in BUSY} | {"worker": time.process_time()}


async def measure(running: Mesh, num_blocks: int, num_rounds: int) -> dict[str, object]:
    network = GrpcNetwork(ChannelSecurity.plain())
    worker = Worker(network, running.addresses["kvstore"], num_blocks)
    rounds: list[dict[str, Figures]] = []
    try:
        for _ in range(num_rounds + 1):
            rounds.append(await one_round(running, worker))
    finally:
        await network.close()
    counted = rounds[1:]  # the first one fills the tiers
    return {
        part: {who: round(median(r[part][who] for r in counted), 3) for who in counted[0][part]}
        for part in counted[0]
    }


async def one_round(running: Mesh, worker: Worker) -> dict[str, Figures]:
    """CPU milliseconds per block, by part and process."""
    hashes = [BlockHash(os.urandom(16)) for _ in range(worker.num_blocks)]
    before = cpu_s(running)
    worker.pages.blocks_filled(hashes, range(worker.num_blocks))
    digested = cpu_s(running)
    await worker.offload(hashes)
    await asyncio.sleep(1.0)  # copies to disk, events, the index
    offloaded = cpu_s(running)
    newest = hashes[-worker.num_blocks // 4 :]
    num_pages = await worker.fetch(newest)
    assert num_pages == LAYOUT.num_layers * len(newest), f"{num_pages} pages came"
    fetched = cpu_s(running)
    worker.pages.blocks_evicted(hashes)
    return {
        "digest": {"worker": (digested["worker"] - before["worker"]) * 1000 / len(hashes)},
        "offload": per_block(digested, offloaded, len(hashes)),
        "fetch": per_block(offloaded, fetched, len(newest)),
    }


def per_block(before: Figures, after: Figures, num_blocks: int) -> Figures:
    return {who: (after[who] - before[who]) * 1000 / num_blocks for who in before}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=480, help="of a round; 384 KiB each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    tiers = {f"BANYAN_KVSTORE_{name}": value for name, value in TIERS.items()}
    keep_freed_memory()  # as a worker does
    with mesh(env=tiers) as running:
        result = asyncio.run(measure(running, options.blocks, options.rounds))
    if options.json:
        print(json.dumps(result))
        return
    for part, figures in result.items():
        words = ", ".join(f"{who} {ms:.3f}" for who, ms in cast(Figures, figures).items())
        print(f"{part:8} CPU ms per block of {BLOCK_BYTES >> 10} KiB: {words}")


if __name__ == "__main__":
    main()
