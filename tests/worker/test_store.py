"""A worker and a real kvstore: blocks go there in the background and come back when it pays."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from prometheus_client import CollectorRegistry
from tests.core.engines import echoed, spec
from tests.worker.workers import Mesh, clock, virtual

from banyan_core.policies.onboard import Always, Never
from banyan_core.types import LeasedKv, SamplingParams
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime.memory_bus import MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_network import MemoryNetwork
from banyan_worker.options import WorkerOptions

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


async def warmed(mesh: Mesh, options: WorkerOptions) -> None:
    """A worker computed the prompt and the store has its blocks."""
    worker = await mesh.worker("d0", options=options)
    gateway = mesh.gateway()
    gateway.listen(worker)
    await gateway.decode(worker, spec("warm", PROMPT, sampling=GREEDY))
    await gateway.until("warm")
    await asyncio.sleep(0.2)
    await gateway.close()
    await gateway.network.close()
    assert worker.figures()["banyan_worker_offloaded_blocks"] == (len(PROMPT) + 19) // 4


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
    await asyncio.sleep(0.2)
    assert told.output() == EXPECTED
    assert told.figures is not None and told.figures.num_fetched_blocks == 0
    assert worker.figures()["banyan_worker_offloaded_blocks"] == 0
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
    await asyncio.sleep(0.2)
    assert clock().clock.now_ns() < 1_000_000_000
    assert worker.figures()["banyan_worker_offload_dropped_blocks"] == (len(PROMPT) + 19) // 4
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
