"""What a worker says on the bus: alive, gone, and exactly the blocks that it has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from tests.core.engines import spec
from tests.worker.workers import Mesh, virtual

from banyan.v1 import events_pb2
from banyan_core.hashing import unpack
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS
from banyan_worker.options import WorkerOptions


def events(mesh: Mesh, topic: str) -> list[events_pb2.Event]:
    records = mesh.broker.after(topic, 0, 100_000)
    return [events_pb2.Event.FromString(record.value) for record in records]


def folded(told: list[events_pb2.Event]) -> set[bytes]:
    """What a consumer believes after these."""
    here: set[bytes] = set()
    for event in told:
        match event.WhichOneof("payload"):
            case "blocks_stored":
                here |= set(unpack(event.blocks_stored.block_hashes))
            case "blocks_removed":
                here -= set(unpack(event.blocks_removed.block_hashes))
            case "blocks_snapshot":
                part = event.blocks_snapshot
                here = set() if part.chunk == 0 else here
                here |= set(unpack(part.block_hashes))
    return here


@virtual
async def test_stored_and_removed_add_up_to_what_is_here() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1", num_blocks=16)
    gateway = mesh.gateway()
    gateway.listen(worker)
    for number in range(6):
        prompt = tuple(range(number * 50, number * 50 + 30))
        await gateway.decode(worker, spec(f"{number}", prompt, max_tokens=10))
        await gateway.until(f"{number}")
        await asyncio.sleep(0.12)
        told = events(mesh, KV_EVENTS)
        assert folded(told) == set(worker.engine.cached_hashes())
    kinds = {event.WhichOneof("payload") for event in told}
    assert kinds == {"blocks_snapshot", "blocks_stored", "blocks_removed"}
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert {(event.producer, event.epoch) for event in told} == {("d1", worker.ref.epoch)}
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_worker_starts_with_an_empty_snapshot_and_repeats_it() -> None:
    mesh = Mesh()
    options = replace(WorkerOptions(), snapshot_interval_s=2.0)
    await mesh.worker("d1", options=options)
    await asyncio.sleep(5.1)
    snapshots = [e.blocks_snapshot for e in events(mesh, KV_EVENTS)]
    assert [(s.chunk, s.num_chunks, s.block_hashes) for s in snapshots] == [(0, 1, b"")] * 3
    await mesh.stop()


@virtual
async def test_a_dropped_event_is_followed_by_a_snapshot() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    await asyncio.sleep(0.2)
    published = worker.work.parts.events
    published._producer._bus._max_buffered = 0  # type: ignore[attr-defined]  # a full buffer
    published.blocks_filled([b"a" * 16])
    await asyncio.sleep(0.1)
    published._producer._bus._max_buffered = 100  # type: ignore[attr-defined]  # room again
    assert published.num_dropped > 0
    before = len(events(mesh, KV_EVENTS))
    await asyncio.sleep(1.2)
    later = events(mesh, KV_EVENTS)[before:]
    assert [event.WhichOneof("payload") for event in later] == ["blocks_snapshot"]
    await mesh.stop()


@virtual
async def test_alive_at_least_once_a_second_and_gone_at_the_end() -> None:
    mesh = Mesh()
    worker = await mesh.worker("d1")
    await asyncio.sleep(10)
    told = events(mesh, WORKER_EVENTS)
    times = [event.time_unix_ns / 1e9 for event in told]
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) <= 1.01 and len(told) <= 15
    alive = told[-1].worker_alive
    assert (alive.worker.worker_id, alive.num_blocks, alive.model) == ("d1", 64, "echo")
    await mesh.stop()
    await asyncio.sleep(0.1)
    last = events(mesh, WORKER_EVENTS)[-1]
    assert last.worker_gone.worker.epoch == worker.ref.epoch
