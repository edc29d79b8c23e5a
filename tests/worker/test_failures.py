"""What goes wrong between workers costs time, never an answer, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.core.engines import echoed, spec
from tests.worker.workers import Mesh, clock, virtual

from banyan_core.echo import EchoLatency
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.types import NS_PER_MS, NS_PER_S, Finish, LeasedKv, SamplingParams
from banyan_runtime.virtual_loop import run_virtual
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import InlineExecutor

PROMPT = tuple(range(100, 141))
GREEDY = SamplingParams(temperature=0, max_tokens=20)
EXPECTED = echoed(spec("r", PROMPT, sampling=GREEDY))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_corrupted_page_is_rejected_counted_and_recomputed(layer: int) -> None:
    async def main() -> None:
        mesh = Mesh()
        pair = await mesh.pair()
        await pair.gateway.prefill(pair.prefill, spec("r/0/1", PROMPT, sampling=GREEDY))
        await pair.gateway.until("r/0/1")
        damaged = pair.prefill.engine.block_of(pair.prefill.engine.cached_hashes()[3])
        assert damaged is not None
        page = bytearray(mesh.runners["p1"].export_page(damaged, layer))
        page[5] ^= 1
        mesh.runners["p1"].import_page(damaged, layer, bytes(page))
        source = LeasedKv(pair.prefill.ref, "r/0/1")
        await pair.gateway.decode(pair.decode, spec("r/0/2", PROMPT, sampling=GREEDY), source)
        rest = await pair.gateway.until("r/0/2")
        assert rest.output() == EXPECTED
        assert rest.figures is not None
        assert rest.figures.num_rejected_pages == 1
        assert rest.figures.num_cached_tokens == 3 * 4, "recomputed from the damaged block on"
        assert pair.decode.figures()["banyan_worker_rejected_pages"] == 1
        await pair.gateway.release(pair.prefill, "r/0/1")
        await pair.gateway.close()
        await mesh.stop()

    run_virtual(main)


@virtual
async def test_a_lease_that_nobody_releases_expires_and_frees() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    asked = spec("r/0/1", PROMPT, sampling=GREEDY)
    await pair.gateway.prefill(pair.prefill, asked, lease_ns=2 * NS_PER_S)
    await pair.gateway.until("r/0/1")
    await asyncio.sleep(1.9)
    assert pair.prefill.engine.num_used_blocks > 0
    await asyncio.sleep(0.2)
    assert pair.prefill.engine.num_used_blocks == 0
    assert pair.prefill.figures()["banyan_worker_expired_leases"] == 1
    source = LeasedKv(pair.prefill.ref, "r/0/1")
    await pair.gateway.decode(pair.decode, spec("r/0/2", PROMPT, sampling=GREEDY), source)
    rest = await pair.gateway.until("r/0/2")
    assert rest.output() == EXPECTED
    assert pair.decode.figures()["banyan_worker_failed_pulls"] == 1
    await pair.gateway.close()
    await mesh.stop()


@pytest.mark.parametrize("after_ms", [0, 2, 3, 4, 5, 8, 12])
def test_decode_goes_on_alone_when_its_source_dies(after_ms: int) -> None:
    async def main() -> None:
        mesh = Mesh()
        pair = await mesh.pair()
        await pair.split(PROMPT, GREEDY)
        await asyncio.sleep(after_ms / 1000)
        mesh.wires.crash("p1")
        await pair.prefill.crash()
        rest = await pair.gateway.until("r/0/2")
        assert rest.output() == EXPECTED and min(rest.tokens) == 0
        mesh.workers.remove(pair.prefill)
        await pair.gateway.close()
        await mesh.stop()

    run_virtual(main)


@virtual
async def test_a_silent_source_is_given_up_in_bounded_time() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    mesh.wires.partition("p1", "d1")
    started_ns = clock().clock.now_ns()
    await pair.split(PROMPT, GREEDY)
    rest = await pair.gateway.until("r/0/2")
    assert rest.output() == EXPECTED
    assert clock().clock.now_ns() - started_ns < 4 * NS_PER_S
    mesh.wires.heal()
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_a_cancel_frees_within_one_step() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.gateway.decode(pair.decode, spec("a", PROMPT, max_tokens=150))
    await pair.gateway.until("a", num_tokens=3)
    steps = pair.decode.work.totals
    before = steps.num_steps
    pair.gateway.cancel(pair.decode, "a")
    told = await pair.gateway.until("a")
    assert told.finish is Finish.CANCELLED
    assert steps.num_steps - before <= 2, "the step under way, and none that knew of it"
    assert pair.decode.engine.num_used_blocks == 0
    await pair.gateway.close()
    await mesh.stop()


class CancelAtTheEnd(InlineExecutor):
    """Lets a cancel arrive between the end of a step and its commit."""

    worker: WorkerService

    async def run(
        self,
        runner: Runner,
        plan: StepPlan,
        on_layer: Callable[[int], None],
        on_end: Callable[[StepResult], StepPlan | None],
    ) -> None:
        ids = [item.sequence_id for item in plan.items]

        def end_and_cancel(result: StepResult) -> StepPlan | None:
            following = on_end(result)
            asyncio.get_running_loop().call_soon(self.worker.work.cancel, ids)
            return following

        await super().run(runner, plan, on_layer, end_and_cancel)


@virtual
async def test_a_cancel_that_meets_the_end_of_a_prefill_leaves_no_lease() -> None:
    mesh = Mesh()
    executor = CancelAtTheEnd()
    executor.worker = await mesh.worker("p1", executor=executor)
    gateway = mesh.gateway()
    gateway.listen(executor.worker)
    await gateway.prefill(executor.worker, spec("r/0/1", PROMPT, sampling=GREEDY))
    assert (await gateway.until("r/0/1")).finish is Finish.LENGTH, "the step was complete"
    assert executor.worker.engine.num_used_blocks == 0
    assert len(executor.worker.work.parts.leases) == 0
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_cancel_while_the_kv_is_fetched_leaves_no_reservation() -> None:
    mesh = Mesh()
    slow = EchoLatency(base_ns=1_000_000, token_ns=20_000_000, sequence_ns=0)
    prefill = await mesh.worker("p1", latency=slow)
    decode = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(prefill)
    gateway.listen(decode)
    await gateway.prefill(prefill, spec("r/0/1", PROMPT, sampling=GREEDY))
    source = LeasedKv(prefill.ref, "r/0/1")
    await gateway.decode(decode, spec("r/0/2", PROMPT, sampling=GREEDY), source)
    await asyncio.sleep(0.6)  # the first layer has come, the second has not
    assert decode.engine.num_used_blocks > 0
    gateway.cancel(decode, "r/0/2")
    gateway.cancel(prefill, "r/0/1")
    assert (await gateway.until("r/0/2")).finish is Finish.CANCELLED
    await asyncio.sleep(0.01)
    assert decode.engine.num_used_blocks == 0
    assert (await gateway.until("r/0/1")).finish is Finish.CANCELLED
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_deadline_ends_what_runs_and_what_still_waits_for_kv() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    soon = 50 * NS_PER_MS
    running = spec("a", PROMPT, max_tokens=150, remaining_ns=soon)
    await pair.gateway.decode(pair.decode, running)
    waiting = spec("b", PROMPT, max_tokens=150, remaining_ns=soon)
    await pair.gateway.decode(pair.decode, waiting, LeasedKv(pair.prefill.ref, "never"))
    for name in ("a", "b"):
        told = await pair.gateway.until(name)
        assert (told.finish, told.error) == (Finish.CANCELLED, "its deadline passed")
    assert pair.decode.engine.num_used_blocks == 0
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_a_failed_step_fails_its_sequences_and_the_worker_goes_on() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    runner = mesh.runners["d1"]
    run = runner.run
    failures = iter([True])

    def fails_once(plan: StepPlan, on_layer: object) -> object:
        if next(failures, False):
            raise MemoryError("no memory for this batch")
        return run(plan, on_layer)  # type: ignore[arg-type]  # passed on as it came

    runner.run = fails_once  # type: ignore[assignment,method-assign]  # a fault, injected
    await pair.gateway.decode(pair.decode, spec("a", PROMPT))
    told = await pair.gateway.until("a")
    assert told.finish is Finish.FAILED
    assert told.error == "MemoryError: no memory for this batch"
    await pair.gateway.decode(pair.decode, spec("b", PROMPT))
    assert (await pair.gateway.until("b")).output() == echoed(spec("b", PROMPT))
    await pair.gateway.close()
    await mesh.stop()
