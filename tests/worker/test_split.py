"""Prefill in one worker, decode in another: the answer is that of one worker alone."""

from __future__ import annotations

import asyncio

import pytest
from tests.core.engines import BLOCK_SIZE, echoed, spec
from tests.worker.workers import Mesh, virtual

from banyan_core.echo import EchoLatency
from banyan_core.scheduler import EngineLimits
from banyan_core.types import Finish, LeasedKv, SamplingParams
from banyan_runtime import wire
from banyan_runtime.virtual_loop import run_virtual
from banyan_worker.options import WorkerOptions

PROMPT = tuple(range(100, 141))
NUM_FULL_BLOCKS = 10
GREEDY = SamplingParams(temperature=0, max_tokens=20)
EXPECTED = echoed(spec("r", PROMPT, sampling=GREEDY))


@virtual
async def test_split_equals_unsplit() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.split(PROMPT, GREEDY)
    first = await pair.gateway.until("r/0/1")
    rest = await pair.gateway.until("r/0/2")
    assert first.output() == EXPECTED[:1] and first.finish is Finish.LENGTH
    assert rest.output() == EXPECTED and rest.finish is Finish.LENGTH
    assert rest.figures is not None and rest.figures.fetch_ns > 0
    assert rest.figures.num_cached_tokens == NUM_FULL_BLOCKS * BLOCK_SIZE
    assert rest.figures.num_fetched_blocks == NUM_FULL_BLOCKS
    assert await pair.gateway.release(pair.prefill, "r/0/1") == 1
    pair.gateway.ack(pair.decode, "r/0/2")
    await asyncio.sleep(0.1)
    assert len(pair.decode.work.parts.streams.outbox) == 0
    await pair.gateway.close()
    await mesh.stop()


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("logprobs", [False, True])
def test_any_length_and_any_sampling(num_tokens: int, logprobs: bool) -> None:
    sampling = SamplingParams(temperature=0.8, seed=7, max_tokens=30, logprobs=logprobs)
    prompt = PROMPT[:num_tokens]

    async def main() -> None:
        mesh = Mesh()
        pair = await mesh.pair()
        await pair.split(prompt, sampling)
        rest = await pair.gateway.until("r/0/2")
        assert rest.output() == echoed(spec("r", prompt, sampling=sampling))
        await pair.gateway.release(pair.prefill, "r/0/1")
        await pair.gateway.close()
        await mesh.stop()

    run_virtual(main)


@virtual
async def test_pages_leave_while_the_prefill_still_computes() -> None:
    mesh = Mesh()
    limits = EngineLimits(max_step_tokens=BLOCK_SIZE, max_running=4)
    pair = await mesh.pair(WorkerOptions(limits=limits))
    await pair.split(PROMPT, GREEDY)
    num_sent = 0
    while "r/0/1" not in pair.gateway.told:
        num_sent = pair.prefill.work.parts.exporter.num_pages_sent
        await asyncio.sleep(0.0001)
    assert num_sent == 2 * NUM_FULL_BLOCKS
    await pair.gateway.until("r/0/2")
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_the_first_layer_leaves_before_the_last_is_computed() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.split(PROMPT, GREEDY)
    seen = set()
    while "r/0/1" not in pair.gateway.told:
        seen.add(pair.prefill.work.parts.exporter.num_pages_sent)
        await asyncio.sleep(0.0001)
    assert {0, NUM_FULL_BLOCKS} <= seen
    await pair.gateway.until("r/0/2")
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_only_what_is_missing_is_pulled() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.gateway.decode(pair.decode, spec("warm", PROMPT[:21], max_tokens=1))
    await pair.gateway.until("warm")
    await pair.split(PROMPT, GREEDY)
    rest = await pair.gateway.until("r/0/2")
    assert rest.output() == EXPECTED
    assert rest.figures is not None
    assert rest.figures.num_fetched_blocks == NUM_FULL_BLOCKS - 5
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_a_pull_may_overtake_its_prefill() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    mesh.wires.set_delay(300_000_000, source="gateway*", target="p1", method=wire.PREFILL.path)
    await pair.split(PROMPT, GREEDY)
    rest = await pair.gateway.until("r/0/2")
    assert rest.figures is not None
    assert rest.figures.num_fetched_blocks == NUM_FULL_BLOCKS
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_decode_on_the_prefill_worker_pulls_nothing() -> None:
    mesh = Mesh()
    pair = await mesh.pair()
    await pair.gateway.prefill(pair.prefill, spec("r/0/1", PROMPT, sampling=GREEDY))
    first = await pair.gateway.until("r/0/1")
    goes_on = spec("r/0/2", PROMPT, output=tuple(first.output()), sampling=GREEDY)
    await pair.gateway.decode(pair.prefill, goes_on, LeasedKv(pair.prefill.ref, "r/0/1"))
    rest = await pair.gateway.until("r/0/2")
    assert rest.output() == EXPECTED[1:]
    assert pair.prefill.work.parts.importer.totals.num_pulls == 0
    assert rest.figures is not None
    assert rest.figures.num_cached_tokens == NUM_FULL_BLOCKS * BLOCK_SIZE
    await pair.gateway.release(pair.prefill, "r/0/1")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_tokens_already_sent_stand_and_the_work_goes_on_after_them() -> None:
    """A resume on a fresh pair of workers, with KV of prompt and output handed over."""
    mesh = Mesh()
    pair = await mesh.pair()
    given = tuple(EXPECTED[:7])
    await asyncio.gather(
        pair.gateway.prefill(pair.prefill, spec("r/0/3", PROMPT, output=given, sampling=GREEDY)),
        pair.gateway.decode(
            pair.decode,
            spec("r/0/4", PROMPT, output=given, sampling=GREEDY),
            LeasedKv(pair.prefill.ref, "r/0/3"),
        ),
    )
    first = await pair.gateway.until("r/0/3")
    rest = await pair.gateway.until("r/0/4")
    assert first.tokens == {7: EXPECTED[7]}
    assert rest.output() == EXPECTED[7:] and min(rest.tokens) == 7
    assert rest.figures is not None
    assert rest.figures.num_fetched_blocks == (len(PROMPT) + 7) // BLOCK_SIZE
    await pair.gateway.release(pair.prefill, "r/0/3")
    await pair.gateway.close()
    await mesh.stop()


@virtual
async def test_many_at_once_under_preemption() -> None:
    """Pools too small for all: preemption on both sides, equal answers, nothing left."""
    mesh = Mesh()
    prefill = await mesh.worker("p1", num_blocks=30)
    decode = await mesh.worker("d1", num_blocks=30)
    gateway = mesh.gateway()
    gateway.listen(prefill)
    gateway.listen(decode)
    asked = [spec(f"{i}", tuple(range(i, i + 20)), max_tokens=25) for i in range(8)]
    for one in asked:
        lease_id = f"p{one.sequence_id}"
        await gateway.prefill(prefill, spec(lease_id, one.prompt_token_ids, max_tokens=25))
        await gateway.decode(decode, one, LeasedKv(prefill.ref, lease_id))
    for one in asked:
        told = await gateway.until(one.sequence_id)
        assert told.output() == echoed(one), one.sequence_id
        await gateway.release(prefill, f"p{one.sequence_id}")
    assert decode.engine.totals.num_preemptions > 0
    await gateway.close()
    await mesh.stop()


@virtual
async def test_a_pull_that_waits_behind_a_slow_prefill_is_told_that_it_goes_on() -> None:
    """Steps of 1.8 s, a layer done within each second: the pull of the last waits far longer."""
    mesh = Mesh()
    slow = EchoLatency(base_ns=1_800_000_000, token_ns=0, sequence_ns=0)
    one_at_a_time = WorkerOptions(limits=EngineLimits(max_running=1, max_step_tokens=64))
    prefill = await mesh.worker("p1", latency=slow, options=one_at_a_time)
    decode = await mesh.worker("d1")
    gateway = mesh.gateway()
    gateway.listen(prefill)
    gateway.listen(decode)
    asked = [spec(f"{i}", tuple(range(i, i + 20)), max_tokens=5) for i in range(4)]
    for one in asked:
        lease_id = f"p{one.sequence_id}"
        await gateway.prefill(prefill, spec(lease_id, one.prompt_token_ids, max_tokens=5))
        await gateway.decode(decode, one, LeasedKv(prefill.ref, lease_id))
    for one in asked:
        assert (await gateway.until(one.sequence_id)).output() == echoed(one)
        await gateway.release(prefill, f"p{one.sequence_id}")
    assert decode.work.parts.importer.totals.num_failed_pulls == 0
    await gateway.close()
    await mesh.stop()
