"""What only the twin can do: exact delays, partitions that heal, processes that crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from banyan.v1 import router_pb2, worker_pb2
from banyan_core.types import NS_PER_MS, NS_PER_S
from banyan_runtime import rpc, wire
from banyan_runtime.memory_mesh import KEEPALIVE_S, MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.rpc import Code, RpcError
from banyan_runtime.rpc_bounds import MAX_IN_FLIGHT, MAX_WAIT_S
from banyan_runtime.virtual_loop import run_virtual

ADDRESS = "worker:7000"


async def now_ms() -> float:
    return asyncio.get_running_loop().time() * 1000


async def place(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
    return router_pb2.PlaceResponse(refusal=router_pb2.PlaceRefusal(reason=request.request_id))


class Ticker:
    """Serves WATCH with a report every 10 ms; `num_sent` counts what it tried to send."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.ended_ms = 0.0

    async def watch(
        self, request: worker_pb2.WatchRequest
    ) -> AsyncIterator[worker_pb2.WorkerReport]:
        try:
            while True:
                self.num_sent += 1
                yield worker_pb2.WorkerReport(num_blocks=self.num_sent)
                await asyncio.sleep(0.01)
        finally:
            self.ended_ms = await now_ms()


async def collect(network: MemoryNetwork, heard: list[tuple[float, int]]) -> Code | None:
    try:
        async for report in network.channel(ADDRESS).stream(wire.WATCH, worker_pb2.WatchRequest()):
            heard.append((await now_ms(), report.num_blocks))
    except RpcError as error:
        return error.code
    return None


def test_a_call_takes_the_delays_of_its_links() -> None:
    async def main() -> list[float]:
        mesh = MemoryMesh()
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        await worker.serve(ADDRESS, [rpc.serve_unary(wire.PLACE, place)])
        took = []
        mesh.set_delay(NS_PER_MS)
        for change in (
            {},
            {"source": "rou*", "delay_ns": 50 * NS_PER_MS},
            {"method": "/banyan.v1.Router/*", "delay_ns": 7 * NS_PER_MS},
        ):
            if change:
                mesh.set_delay(**change)  # type: ignore[arg-type]  # a table of keywords
            started = await now_ms()
            await router.channel(ADDRESS).unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
            took.append(round(await now_ms() - started, 6))
        await router.close()
        await worker.close()
        return took

    assert run_virtual(main) == [2, 51, 14]


def test_nothing_of_a_crashed_process_is_seen_after_the_cut() -> None:
    async def main() -> None:
        mesh = MemoryMesh()
        mesh.set_delay(5 * NS_PER_MS)
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        ticker, heard = Ticker(), []  # type: ignore[var-annotated]  # filled by collect
        await worker.serve(ADDRESS, [rpc.serve_stream(wire.WATCH, ticker.watch)])
        collecting = asyncio.create_task(collect(router, heard))
        await asyncio.sleep(0.107)
        seen = list(heard)
        mesh.crash("worker")
        cut_ms = await now_ms()
        assert await collecting is Code.UNAVAILABLE
        assert await now_ms() == pytest.approx(cut_ms + 5)
        assert heard == seen, "what was in flight at the cut arrived"
        assert ticker.num_sent > len(heard), "the test needs something in flight"
        with pytest.raises(RpcError) as caught:
            await router.channel(ADDRESS).unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
        assert caught.value.code is Code.UNAVAILABLE
        with pytest.raises(RpcError):
            await worker.channel("router:1").unary(wire.PLACE, router_pb2.PlaceRequest(), 5)
        await router.close()

    run_virtual(main)


def test_a_crashed_client_cancels_its_calls_at_the_server() -> None:
    async def main() -> None:
        mesh = MemoryMesh()
        mesh.set_delay(3 * NS_PER_MS)
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        ticker, heard = Ticker(), []  # type: ignore[var-annotated]  # filled by collect
        await worker.serve(ADDRESS, [rpc.serve_stream(wire.WATCH, ticker.watch)])
        collecting = asyncio.create_task(collect(router, heard))
        await asyncio.sleep(0.05)
        mesh.crash("router")
        cut_ms = await now_ms()
        collecting.cancel()
        with suppress(asyncio.CancelledError):
            await collecting
        await asyncio.sleep(1)
        assert ticker.ended_ms == pytest.approx(cut_ms + 3)
        await worker.close()

    run_virtual(main)


def test_a_restarted_process_serves_the_same_address() -> None:
    async def main() -> str:
        mesh = MemoryMesh()
        router = MemoryNetwork(mesh, "router")
        for _ in range(3):
            mesh.crash("worker")
            worker = MemoryNetwork(mesh, "worker")
            await worker.serve(ADDRESS, [rpc.serve_unary(wire.PLACE, place)])
        request = router_pb2.PlaceRequest(request_id="again")
        answer = await router.channel(ADDRESS).unary(wire.PLACE, request, 5)
        await router.close()
        await worker.close()
        return answer.refusal.reason

    assert run_virtual(main) == "again"


def test_a_partition_holds_bytes_back_and_gives_them_in_order() -> None:
    async def main() -> None:
        mesh = MemoryMesh()
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        ticker, heard = Ticker(), []  # type: ignore[var-annotated]  # filled by collect
        await worker.serve(ADDRESS, [rpc.serve_stream(wire.WATCH, ticker.watch)])
        collecting = asyncio.create_task(collect(router, heard))
        await asyncio.sleep(0.055)
        before = len(heard)
        mesh.partition("router", "worker")
        await asyncio.sleep(2)
        assert len(heard) == before
        mesh.heal()
        await asyncio.sleep(0.1)
        assert [number for _, number in heard] == list(range(1, len(heard) + 1))
        assert len(heard) > 200
        collecting.cancel()
        with suppress(asyncio.CancelledError):
            await collecting
        await router.close()
        await worker.close()

    run_virtual(main)


def test_a_partition_that_lasts_breaks_both_sides() -> None:
    async def main() -> None:
        mesh = MemoryMesh()
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        ticker, heard = Ticker(), []  # type: ignore[var-annotated]  # filled by collect
        await worker.serve(ADDRESS, [rpc.serve_stream(wire.WATCH, ticker.watch)])
        collecting = asyncio.create_task(collect(router, heard))
        await asyncio.sleep(1)
        mesh.partition("router", "*")
        assert await collecting is Code.UNAVAILABLE
        assert await now_ms() == pytest.approx((1 + KEEPALIVE_S) * 1000)
        await asyncio.sleep(0.1)
        assert ticker.ended_ms == pytest.approx((1 + KEEPALIVE_S) * 1000)
        # A stream opened meanwhile breaks after the same time; a unary call at its deadline.
        assert await collect(router, heard) is Code.UNAVAILABLE
        with pytest.raises(RpcError) as caught:
            await router.channel(ADDRESS).unary(wire.PLACE, router_pb2.PlaceRequest(), 1)
        assert caught.value.code is Code.DEADLINE
        await router.close()
        await worker.close()

    run_virtual(main)


def test_two_runs_of_a_mesh_are_equal() -> None:
    async def main() -> list[tuple[float, int]]:
        mesh = MemoryMesh()
        rng = asyncio.get_running_loop().rng("delays")  # type: ignore[attr-defined]  # virtual
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")
        ticker = Ticker()
        heard: list[tuple[float, int]] = []
        await worker.serve(ADDRESS, [rpc.serve_stream(wire.WATCH, ticker.watch)])
        collecting = [asyncio.create_task(collect(router, heard)) for _ in range(5)]
        for _ in range(50):
            mesh.set_delay(rng.randrange(NS_PER_S // 20))
            await asyncio.sleep(rng.random() / 10)
        await worker.close()
        await asyncio.gather(*collecting)
        await router.close()
        return heard

    first = run_virtual(main, seed=3)
    assert first == run_virtual(main, seed=3)
    assert first != run_virtual(main, seed=4)


def test_calls_past_the_bound_of_a_channel_are_refused() -> None:
    async def main() -> list[Code]:
        mesh = MemoryMesh()
        worker, router = MemoryNetwork(mesh, "worker"), MemoryNetwork(mesh, "router")

        async def slow(request: router_pb2.PlaceRequest) -> router_pb2.PlaceResponse:
            await asyncio.sleep(MAX_WAIT_S * 2)
            return router_pb2.PlaceResponse()

        await worker.serve(ADDRESS, [rpc.serve_unary(wire.PLACE, slow)])
        channel = router.channel(ADDRESS)
        calls = [
            channel.unary(wire.PLACE, router_pb2.PlaceRequest(), 60)
            for _ in range(MAX_IN_FLIGHT + 3)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await router.close()
        await worker.close()
        return [answer.code for answer in answers if isinstance(answer, RpcError)]

    assert run_virtual(main) == [Code.EXHAUSTED] * 3
