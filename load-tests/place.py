"""What one `Place` costs the router's process: its request's bytes in, its answer's bytes out.

Decode, lookup in the router's own copy of the index, decision, encode; without the network around
it. The router is the real one; its workers only introduce themselves and report.

    python load-tests/place.py [--workers 16] [--tokens 1000] [--calls 3000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import statistics
import time
from collections.abc import AsyncIterator

import uvloop
from prometheus_client import CollectorRegistry

from banyan.v1 import router_pb2, worker_pb2
from banyan_core.hashing import block_hashes
from banyan_core.index_facts import Position
from banyan_core.placement import PlaceQuery
from banyan_core.policies.routing import PrefixCost
from banyan_core.types import Role, WorkerLoad, WorkerRef
from banyan_router.metrics import RouterMetrics
from banyan_router.prefixes import Prefixes
from banyan_router.service import RouterService
from banyan_router.servicer import RouterServicer
from banyan_runtime import codec, wire
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import StaticDirectory
from banyan_runtime.lifespan import Tasks
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.rpc import serve_stream
from banyan_text.card import echo_card

BLOCK_SIZE = 16
CARD = echo_card(BLOCK_SIZE, "deterministic")
NUM_BLOCKS = 4096
STEP_S = 0.001  # between two calls: time for what the first one left to do
LOGGER = logging.getLogger("place")


class Worker:
    """Says once a second how loaded it is."""

    def __init__(self, mesh: MemoryMesh, number: int) -> None:
        role = Role.DECODE if number % 2 else Role.PREFILL
        name = f"{role.value}-{number // 2}"
        self.ref = WorkerRef(name, 1, f"{name}:1", role)
        self._network = MemoryNetwork(mesh, name)
        self._load = WorkerLoad(
            num_running=number % 5,
            num_free_blocks=NUM_BLOCKS - 100 * number,
            prefill_tokens_per_s=2000.0 + 100 * number,
        )

    async def start(self) -> None:
        await self._network.serve(self.ref.address, [serve_stream(wire.WATCH, self._watch)])

    async def _watch(self, _: worker_pb2.WatchRequest) -> AsyncIterator[worker_pb2.WorkerReport]:
        load = codec.worker_load_to_pb(self._load)
        report = worker_pb2.WorkerReport(worker=codec.worker_ref_to_pb(self.ref), load=load)
        first = worker_pb2.WorkerReport(num_blocks=NUM_BLOCKS, card=codec.model_card_to_pb(CARD))
        first.MergeFrom(report)
        yield first
        while True:
            await asyncio.sleep(1.0)
            yield report


class Bench:
    """A router that knows its workers, and who has how much of the prompt."""

    def __init__(self, num_workers: int, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.hashes = block_hashes(range(num_tokens), BLOCK_SIZE, b"salt")
        self._mesh = MemoryMesh()
        self._workers = [Worker(self._mesh, number) for number in range(num_workers)]
        clock = SystemClock()
        bus = MemoryBus(MemoryBroker())
        self._index = MemoryKvIndex(MemoryIndexServer(clock))
        addresses: dict[str, tuple[str, ...]] = {
            role.value: tuple(w.ref.address for w in self._workers if w.ref.role is role)
            for role in Role
        }
        self._router = RouterService(
            "router-0",
            "router-0:1",
            MemoryNetwork(self._mesh, "router-0"),
            bus,
            self._index,
            StaticDirectory(addresses),
            clock,
            PrefixCost(),
            seed=0,
            logger=LOGGER,
            registry=CollectorRegistry(),
        )
        metrics = RouterMetrics(CollectorRegistry())
        self._prefixes = Prefixes(bus, self._index, clock, metrics, LOGGER)
        self._servicer = RouterServicer(self._router, self._prefixes)
        self._tasks = Tasks()

    async def start(self) -> None:
        fence = await self._index.acquire("bench", 3600)
        assert fence is not None
        for number, worker in enumerate(self._workers):
            held = self.hashes[: len(self.hashes) * number // len(self._workers)]
            at = Position(worker.ref.epoch, 1)
            await self._index.replace(fence, worker.ref.worker_id, at, held, 3600)
            await worker.start()
        await self._index.replace(fence, "kvstore-0", Position(1, 1), self.hashes, 3600)
        await self._router.start()
        self._prefixes.start(self._tasks)
        while sum(w.live for w in self._router.snapshot().workers) < len(self._workers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the router tells nobody whom it sees

    def request(self, number: int) -> bytes:
        query = PlaceQuery(
            request_id=f"req-{number}",
            choice=0,
            attempt=0,
            card_digest=CARD.digest,
            block_hashes=self.hashes,
            num_prompt_tokens=self.num_tokens,
            num_output_tokens=0,
            max_tokens=128,
        )
        return codec.place_query_to_pb(query).SerializeToString()

    async def place(self, request: bytes) -> bytes:
        answer = await self._servicer.place(router_pb2.PlaceRequest.FromString(request))
        return answer.SerializeToString()

    async def stop(self) -> None:
        await self._tasks.cancel_all()
        await self._router.stop(0)


async def measure(num_workers: int, num_tokens: int, num_calls: int) -> dict[str, object]:
    bench = Bench(num_workers, num_tokens)
    await bench.start()
    requests = [bench.request(number) for number in range(num_calls)]
    for request in requests[:200]:
        answer = await bench.place(request)
    assert len(router_pb2.PlaceResponse.FromString(answer).decision.candidates) == num_workers * 2
    gc.collect()
    gc.freeze()
    walls, cpus = [], []
    for request in requests:
        await asyncio.sleep(STEP_S)
        cpu_before, before = time.process_time(), time.perf_counter()
        answer = await bench.place(request)
        walls.append(time.perf_counter() - before)
        cpus.append(time.process_time() - cpu_before)
    await bench.stop()
    walls.sort()
    cpus.sort()
    return {
        "num_workers": num_workers,
        "num_prompt_tokens": num_tokens,
        "num_calls": num_calls,
        "place_p50_ms": round(1000 * statistics.median(walls), 3),
        "place_p99_ms": round(1000 * walls[int(len(walls) * 0.99)], 3),
        "place_cpu_ms": round(1000 * statistics.mean(cpus), 3),
        "place_cpu_p10_ms": round(1000 * cpus[num_calls // 10], 3),  # the least disturbed ones
        "answer_bytes": len(answer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(options.workers, options.tokens, options.calls))
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
