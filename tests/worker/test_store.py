"""A worker and a real kvstore: blocks go there in the background and come back when it pays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from unittest.mock import patch

from prometheus_client import CollectorRegistry
from tests.core.engines import echoed, spec
from tests.worker.workers import Mesh, Pair, clock, virtual

from banyan_core.policies.onboard import Always, Never
from banyan_core.types import NS_PER_S, LeasedKv, SamplingParams
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime.memory_bus import MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_network import MemoryNetwork
from banyan_worker import offloader
from banyan_worker.options import WorkerOptions
from banyan_worker.service import WorkerService
from banyan_worker.store_client import StoreClient

PROMPT = tuple(range(100, 141))
GREEDY = SamplingParams(temperature=0, max_tokens=20)
EXPECTED = echoed(spec("r", PROMPT, sampling=GREEDY))
STORE = "kvstore-0:1"
ALWAYS = replace(WorkerOptions(), onboard=Always())


async def store(mesh: Mesh) -> KvStoreService:
    service = KvStoreService(
        "kvstore-0",
        STORE,
        MemoryNetwork(mesh.wires, "kvstore-0"),
        MemoryBus(mesh.broker),
        MemoryKvIndex(MemoryIndexServer(clock().clock)),
        clock().clock,
        Tiers(MemoryTier(1 << 20), None),
        KvStoreOptions(),
        logger=mesh.logger,
        registry=CollectorRegistry(),
    )
    await service.start()
    return service


NUM_BLOCKS = (len(PROMPT) + 19) // 4
"""That are full when the 20 tokens are there; the last token's KV is never computed."""


async def counted(worker: WorkerService, figure: str, number: int) -> None:
    """Wait until so many blocks are counted."""
    async with asyncio.timeout(10):
        while worker.figures()[f"banyan_worker_{figure}_blocks"] < number:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.01)
    assert worker.figures()[f"banyan_worker_{figure}_blocks"] == number


async def warmed(mesh: Mesh, options: WorkerOptions) -> None:
    """A worker computed the prompt and the store has its blocks."""
    worker = await mesh.worker("d0", options=options)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("warm", PROMPT, sampling=GREEDY))
    await gateway.until("warm")
    await counted(worker, "offloaded", NUM_BLOCKS)
    await gateway.close()
    await gateway.network.close()


@virtual
async def test_blocks_of_prompt_and_output_are_stored_and_fetched() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    await warmed(mesh, ALWAYS)
    worker = await mesh.worker("d1", options=ALWAYS)
    gateway = mesh.gateway()
    gateway.listen(worker)
    given = tuple(EXPECTED[:8])
    await gateway.decode(worker, spec("a", PROMPT, output=given, sampling=GREEDY))
    told = await gateway.until("a")
    assert told.output() == EXPECTED[8:]
    assert told.figures is not None
    assert told.figures.num_fetched_blocks == (len(PROMPT) + 7) // 4
    assert told.figures.num_cached_tokens == len(PROMPT)
    assert told.figures.num_computed_tokens == 1 + 11
    await gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_what_the_store_has_already_is_not_sent_again() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    await warmed(mesh, ALWAYS)
    worker = await mesh.worker("d1", options=replace(ALWAYS, onboard=Never()))
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, sampling=GREEDY))
    told = await gateway.until("a")
    assert told.output() == EXPECTED
    assert told.figures is not None and told.figures.num_fetched_blocks == 0
    await gateway.decode(worker, spec("others", PROMPT[1:], sampling=GREEDY))
    await counted(worker, "offloaded", (len(PROMPT) - 1 + 19) // 4)
    await gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_a_dead_store_costs_nothing_but_reuse() -> None:
    mesh = Mesh(kvstores=(STORE,))
    worker = await mesh.worker("d1", options=ALWAYS)
    gateway = mesh.gateway()
    gateway.listen(worker)
    for name in ("a", "b"):
        await gateway.decode(worker, spec(name, PROMPT, sampling=GREEDY))
        assert (await gateway.until(name)).output() == EXPECTED
    assert clock().clock.now_ns() < 1_000_000_000
    await counted(worker, "offload_dropped", NUM_BLOCKS)
    await gateway.close()
    await mesh.stop()


@virtual
async def test_decode_takes_from_the_store_what_its_dead_source_had_given_it() -> None:
    """The leased worker dies, the store has the blocks: the next source, not a recompute."""
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    await warmed(mesh, ALWAYS)
    pair = await mesh.pair(ALWAYS)
    mesh.wires.crash("p1")
    await pair.prefill.crash()
    mesh.workers.remove(pair.prefill)
    await pair.gateway.decode(
        pair.decode, spec("a", PROMPT, sampling=GREEDY), LeasedKv(pair.prefill.ref, "gone")
    )
    told = await pair.gateway.until("a")
    assert told.output() == EXPECTED
    assert told.figures is not None and told.figures.num_fetched_blocks == 10
    assert pair.decode.figures()["banyan_worker_failed_pulls"] == 1
    await pair.gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_a_store_is_not_asked_when_the_placement_knows_that_it_has_nothing() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    await warmed(mesh, ALWAYS)
    worker = await mesh.worker("d1", options=ALWAYS)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, sampling=GREEDY), skip_store=True)
    told = await gateway.until("a")
    assert told.output() == EXPECTED
    figures = told.figures
    assert figures is not None
    assert (figures.num_fetched_blocks, figures.fetch_ns) == (0, 0)
    await gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_blocks_that_fill_one_by_one_are_handed_over_together() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    with patch.object(StoreClient, "put", autospec=True, side_effect=StoreClient.put) as put:
        await warmed(mesh, ALWAYS)
    assert put.call_count == 1
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_a_whole_batch_waits_for_no_more() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    with patch.object(offloader, "_BATCH_BYTES", 1):
        worker = await mesh.worker("d0", options=ALWAYS)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("a", PROMPT, sampling=GREEDY))
    started_ns = clock().clock.now_ns()
    await counted(worker, "offloaded", NUM_BLOCKS)
    assert clock().clock.now_ns() - started_ns < offloader.GATHER_S * NS_PER_S
    await gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)


@virtual
async def test_what_came_from_another_worker_is_that_ones_to_hand_over() -> None:
    mesh = Mesh(kvstores=(STORE,))
    kvstore = await store(mesh)
    prefill = await mesh.worker("p1", options=replace(WorkerOptions(), offload=False))
    pair = Pair(prefill, await mesh.worker("d1"), mesh.gateway())
    pair.gateway.listen(prefill)
    pair.gateway.listen(pair.decode)
    await pair.split(PROMPT, GREEDY)
    await pair.gateway.until("r/0/2")
    await counted(pair.decode, "offloaded", NUM_BLOCKS - len(PROMPT) // 4)
    await pair.gateway.release(prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()
    await kvstore.stop(0.1)
