"""The router on the in-memory mesh: what it sees, how it places, what it survives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.core.clusters import query
from tests.router.routed import Routed, two_and_two, virtually

from banyan.v1 import router_pb2
from banyan_core.placement import Placement
from banyan_core.placer import PlaceDecided, Placer, PlacerCommand, PlacerFact
from banyan_core.policies.routing import LeastTokens, PrefixCost
from banyan_core.types import Refusal, Role, WorkerLoad
from banyan_runtime import wire
from banyan_runtime.recorder import FileRecorder, read_recording
from banyan_runtime.rpc import Code, RpcError


def test_without_workers_it_refuses_with_a_time() -> None:
    async def test(routed: Routed) -> None:
        await routed.start()
        outcome, _ = await routed.place(query())
        assert isinstance(outcome, Refusal)
        assert outcome.reason == "no worker is known"
        assert outcome.retry_after_ns > 0

    virtually(test)


def test_it_places_as_soon_as_workers_are_listed() -> None:
    async def test(routed: Routed) -> None:
        await routed.start()
        await asyncio.sleep(5)
        await two_and_two(routed)
        await asyncio.sleep(0.25)
        assert await routed.live() == ["d0", "d1", "p0", "p1"]
        outcome, decision = await routed.place(query())
        assert isinstance(outcome, Placement)
        assert outcome.prefill is not None
        assert (outcome.prefill.worker_id, outcome.decode.worker_id) == ("p0", "d0")
        assert decision.policy == "least_tokens"
        assert decision.number == 1
        assert len(decision.candidates) == 8

    virtually(test)


def test_a_burst_in_one_instant_is_spread() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.start()
        await asyncio.sleep(0.3)
        pairs = await asyncio.gather(*(routed.pair(query(request_id=f"r{n}")) for n in range(4)))
        assert sorted(pairs) == [("p0", "d0"), ("p0", "d0"), ("p1", "d1"), ("p1", "d1")]

    virtually(test)


def test_a_report_that_admits_replaces_the_guess() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        busy = await routed.worker("d0b", Role.DECODE)
        await routed.start()
        await asyncio.sleep(0.3)
        assert await routed.pair(query()) == ("p0", "d0")
        busy.report(WorkerLoad(num_running=9, num_free_blocks=64, admitted=("r1/0/2",)))
        await asyncio.sleep(0.1)
        view = {viewed.worker.worker_id: viewed for viewed in await routed.view()}
        assert view["d0b"].load.num_running == 9
        assert await routed.pair(query(request_id="r2")) == ("p1", "d1")

    virtually(test)


def test_a_crashed_worker_is_out_at_once_and_back_with_its_new_epoch() -> None:
    async def test(routed: Routed) -> None:
        await routed.worker("p0", Role.PREFILL)
        dead = await routed.worker("d0", Role.DECODE)
        await routed.worker("d1", Role.DECODE)
        await routed.start()
        await asyncio.sleep(0.3)
        dead.crash()
        await asyncio.sleep(0.1)
        assert await routed.live() == ["d1", "p0"]
        assert await routed.pair(query()) == ("p0", "d1")
        await asyncio.sleep(20)
        await routed.worker("d0", Role.DECODE, epoch=2)
        await asyncio.sleep(2.1)
        view = {viewed.worker.worker_id: viewed for viewed in await routed.view()}
        assert view["d0"].live
        assert view["d0"].worker.epoch == 2

    virtually(test)


def test_a_worker_that_falls_silent_is_out_after_three_seconds() -> None:
    async def test(routed: Routed) -> None:
        await routed.worker("d0", Role.DECODE)
        mute = await routed.worker("d1", Role.DECODE)
        await routed.start()
        await asyncio.sleep(10)
        assert await routed.live() == ["d0", "d1"]
        mute.is_mute = True
        await asyncio.sleep(4.1)
        assert await routed.live() == ["d0"]

    virtually(test)


def test_a_watch_that_hangs_is_begun_again() -> None:
    async def test(routed: Routed) -> None:
        worker = await routed.worker("d0", Role.DECODE)
        await routed.start()
        await asyncio.sleep(10)
        worker.is_mute = True
        await asyncio.sleep(1.5)  # the running stream now says nothing for an hour
        worker.is_mute = False
        await asyncio.sleep(3)
        assert await routed.live() == ["d0"]
        assert worker.num_watches == 2

    virtually(test)


def test_a_partition_ends_liveness_and_its_end_brings_it_back() -> None:
    async def test(routed: Routed) -> None:
        await routed.worker("d0", Role.DECODE)
        await routed.start()
        await asyncio.sleep(1)
        routed.mesh.partition("router-0", "d0*")
        await asyncio.sleep(4)
        assert await routed.live() == []
        routed.mesh.heal()
        await asyncio.sleep(6)
        assert await routed.live() == ["d0"]

    virtually(test)


def test_an_address_that_never_answers_is_tried_with_bounded_back_off() -> None:
    async def test(routed: Routed) -> None:
        routed.directory.listed["decode"] = ("nobody:1",)
        await routed.start()
        await asyncio.sleep(60)
        worker = await routed.worker("nobody", Role.DECODE)
        await asyncio.sleep(2.1)
        assert worker.num_watches == 1
        assert await routed.live() == ["nobody"]

    virtually(test)


def test_a_worker_taken_off_the_list_is_no_longer_tried() -> None:
    async def test(routed: Routed) -> None:
        worker = await routed.worker("d0", Role.DECODE)
        await routed.start()
        await asyncio.sleep(1)
        routed.directory.listed.clear()
        await asyncio.sleep(10)
        assert await routed.live() == ["d0"]  # who still speaks is still there
        worker.crash()
        again = await routed.worker("d0", Role.DECODE, epoch=2)
        routed.directory.listed.clear()
        await asyncio.sleep(10)
        assert again.num_watches == 0

    virtually(test)


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("request_pb", "message"),
    [
        (router_pb2.PlaceRequest(num_prompt_tokens=1), "request_id is empty"),
        (router_pb2.PlaceRequest(request_id="r"), "num_prompt_tokens is 0, expected at least 1"),
        (
            router_pb2.PlaceRequest(request_id="r", num_prompt_tokens=1, block_hashes=b"x"),
            "block_hashes: 1 bytes is not a multiple of 16",
        ),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(
    request_pb: router_pb2.PlaceRequest, message: str
) -> None:
    async def test(routed: Routed) -> None:
        await routed.start()
        with pytest.raises(RpcError) as caught:
            await routed.gateway.channel("router-0:1").unary(wire.PLACE, request_pb, 1.0)
        assert caught.value.code is Code.INVALID
        assert caught.value.message == message

    virtually(test)


def test_figures_tell_decisions_apart() -> None:
    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.start(LeastTokens())
        await asyncio.sleep(0.3)
        await routed.place(query())
        await routed.place(query(num_prompt_tokens=100_000))

        def count(outcome: str) -> float | None:
            labels = {"policy": "least_tokens", "outcome": outcome}
            return routed.registry.get_sample_value("banyan_router_placements_total", labels)

        assert (count("split"), count("refused")) == (1, 1)
        live = routed.registry.get_sample_value("banyan_router_workers_live", {"role": "decode"})
        assert live == 2

    virtually(test)


def test_a_recorded_run_replays_to_equal_decisions(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"

    async def test(routed: Routed) -> None:
        await two_and_two(routed)
        await routed.index_has("p1", query().block_hashes[:10])
        with FileRecorder(path) as recorder:
            await routed.start(PrefixCost(), recorder=recorder)
            await asyncio.sleep(0.3)
            for number in range(10):
                await routed.place(query(request_id=f"r{number}"))
            await asyncio.sleep(5)

    virtually(test)
    steps = read_recording(path, [PlacerFact, PlacerCommand])
    placer = Placer("router-0", PrefixCost(), seed=1)
    num_decided = 0
    for step in steps:
        commands = tuple(placer.step(step.now, step.facts).commands)
        assert commands == step.commands
        num_decided += sum(isinstance(command, PlaceDecided) for command in commands)
    assert num_decided == 10
