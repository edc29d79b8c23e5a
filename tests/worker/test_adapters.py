"""Adapters in workers: loaded on demand, kept while used, bounded, and refused with a reason.

The model really computes, in deterministic mode; time and network are virtual.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.worker.lora_place import BLOCK_SIZE, PROMPT, Place, run

from banyan_core.types import (
    Adapter,
    Finish,
    LeasedKv,
)
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.random_model import TINY_CONFIG, write_random_model


def test_base_and_two_adapters_in_one_batch(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        first, second = place.write("one", 1), place.write("two", 2, target_modules="all-linear")
        worker = await place.worker("d1")
        said = await asyncio.gather(
            place.said(worker, "r/0/1", None),
            place.said(worker, "r/0/2", first),
            place.said(worker, "r/0/3", second),
            place.said(worker, "r/0/4", first),
        )
        expected = [place.expected(name) for name in (None, "one", "two", "one")]
        assert list(said) == expected
        assert len({tuple(each) for each in said}) == 3, "they answer differently"
        assert worker.figures()["banyan_worker_adapters"] == 2

    run(tmp_path, test)


def test_blocks_are_shared_within_an_adapter_and_never_between(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        first, second = place.write("one", 1), place.write("two", 2)
        worker = await place.worker("d1")
        order = (None, first, second, first, None, second)
        num_cached = []
        for number, adapter in enumerate(order):
            name = None if adapter is None else adapter.name
            said = await place.said(worker, f"r/0/{number}", adapter)
            assert said == place.expected(name)
            figures = place.gateway.told[f"r/0/{number}"].figures
            assert figures is not None
            num_cached.append(figures.num_cached_tokens)
        whole_blocks = len(PROMPT) // BLOCK_SIZE * BLOCK_SIZE
        assert num_cached == [0, 0, 0, whole_blocks, whole_blocks, whole_blocks]

    run(tmp_path, test)


@pytest.mark.parametrize("adapter_name", [None, "one"])
def test_split_equals_unsplit(adapter_name: str | None, tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        written = place.write("one", 1)
        adapter = written if adapter_name else None
        prefill, decode = await place.worker("p1"), await place.worker("d1")
        held = place.spec("r/0/1", adapter)
        source = LeasedKv(prefill.ref, "r/0/1")
        admissions = await asyncio.gather(
            place.gateway.prefill(prefill, held),
            place.gateway.decode(decode, place.spec("r/0/2", adapter), source),
        )
        assert all(each.accepted for each in admissions)
        told = await place.gateway.until("r/0/2")
        assert told.output() == place.expected(adapter_name)
        assert told.figures is not None
        assert told.figures.num_fetched_blocks == len(PROMPT) // BLOCK_SIZE
        await place.gateway.release(prefill, "r/0/1")

    run(tmp_path, test)


def test_what_this_worker_has_not_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        here = place.write("one", 1)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        other = await place.worker("d2", folder=elsewhere)
        without = await place.worker("d3", folder=Path("none"))
        worker = await place.worker("d1")
        newer = Adapter("one", b"n" * 16)
        digests = f"{newer.digest.hex()}, this worker has {here.digest.hex()}"
        for at, adapter, said in (
            (other, here, "adapter 'one': not in this worker's folder"),
            (without, here, "adapter: this worker has no folder of adapters"),
            (
                worker,
                newer,
                f"adapter 'one': {digests}",
            ),
            (worker, Adapter("../one", here.digest), "not in this worker's folder"),
        ):
            for ask in (place.gateway.prefill, place.gateway.decode):
                admission = await ask(at, place.spec("r/0/1", adapter))
                assert not admission.accepted and said in admission.reason
                assert admission.retry_after_ns == 0, "asking again is no use"
        assert other.figures()["banyan_worker_refused"] == 2
        assert await place.said(other, "r/0/2", None) == place.expected(None)

    run(tmp_path, test)


def test_a_bad_adapter_fails_its_own_requests_only(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        good = place.write("good", 1)
        write_random_model(tmp_path / "other", TINY_CONFIG | {"hidden_size": 64}, seed=2)
        write_random_lora(place.adapters / "misfit", tmp_path / "other", LORA_CONFIG, seed=1)
        place.write("dora", 3)
        config = place.adapters / "dora" / "adapter_config.json"
        config.write_text(config.read_text().replace("{", '{"use_dora": true,', 1))
        worker = await place.worker("d1", max_adapters=2)
        for number, (name, wrong) in enumerate(
            (("misfit", "shape [4, 64], expected [4, 32]"), ("dora", "use_dora: True")) * 2
        ):
            running = asyncio.create_task(place.said(worker, f"r/{number}/1", good))
            spec = place.spec(f"r/{number}/2", place.found(name))
            assert (await place.gateway.decode(worker, spec)).accepted
            told = await place.gateway.until(spec.sequence_id)
            assert told.finish is Finish.FAILED
            assert f"adapter {name!r}: " in told.error and wrong in told.error
            assert await running == place.expected("good")
        assert worker.figures()["banyan_worker_adapters"] == 1, "nothing of the bad ones is kept"

    run(tmp_path, test)


def test_an_adapter_that_leaves_the_folder_finishes_what_runs(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        adapter = place.write("one", 1)
        expected = place.expected("one", 60)
        worker = await place.worker("d1", max_adapters=1)
        spec = place.spec("r/0/1", adapter, num_tokens=60)
        assert (await place.gateway.decode(worker, spec)).accepted
        await place.gateway.until("r/0/1", num_tokens=5)
        shutil.rmtree(place.adapters / "one")
        told = await place.gateway.until("r/0/1")
        assert told.output() == expected
        # Once its place was taken by another it is gone for good.
        assert await place.said(worker, "r/0/2", place.write("two", 2)) == place.expected("two")
        admission = await place.gateway.decode(worker, place.spec("r/0/3", adapter))
        assert admission.reason == "adapter 'one': not in this worker's folder"

    run(tmp_path, test)


def test_the_idle_make_room_and_those_in_use_do_not(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        names = ("one", "two", "three")
        adapters = {name: place.write(name, seed) for seed, name in enumerate(names)}
        worker = await place.worker("d1", max_adapters=2)
        long = place.spec("r/0/1", adapters["one"], num_tokens=80)
        assert (await place.gateway.decode(worker, long)).accepted
        also = place.spec("r/0/2", adapters["two"], num_tokens=40)
        assert (await place.gateway.decode(worker, also)).accepted
        third = place.spec("r/0/3", adapters["three"])
        refused = await place.gateway.decode(worker, third)
        assert not refused.accepted and refused.reason == "all 2 adapters are in use"
        assert refused.retry_after_ns > 0
        await place.gateway.until("r/0/2")
        assert await place.said(worker, "r/0/4", adapters["three"]) == place.expected("three")
        told = await place.gateway.until("r/0/1")
        assert told.output() == place.expected("one", 80)
        assert worker.figures()["banyan_worker_adapters"] == 2

    run(tmp_path, test)


def test_cancels_and_drains_give_adapters_back(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        first, second = place.write("one", 1), place.write("two", 2)
        worker = await place.worker("d1", max_adapters=1)
        for number in range(3):
            spec = place.spec(f"r/{number}/1", first, num_tokens=200)
            assert (await place.gateway.decode(worker, spec)).accepted
            if number:
                await place.gateway.until(spec.sequence_id, num_tokens=number)
            place.gateway.cancel(worker, spec.sequence_id)
            await place.gateway.until(spec.sequence_id)
        assert await place.said(worker, "r/3/1", second) == place.expected("two")

    run(tmp_path, test)


def test_files_that_change_while_they_are_read_are_not_served(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        adapter = place.write("one", 1)
        worker = await place.worker("d1")
        spec = place.spec("r/0/1", adapter)
        assert await worker.work.missing(spec) is None
        place.write("one", 2)  # between the look at its digest and the load
        assert (await place.gateway.decode(worker, spec)).accepted is False
        assert worker.work.admit_decode(spec, None) is None
        told = await place.gateway.until("r/0/1")
        assert told.finish is Finish.FAILED
        assert told.error == "adapter 'one': its files changed while they were read"
        assert await place.said(worker, "r/0/2", place.found("one")) == place.expected("one")

    run(tmp_path, test)


def test_a_sequence_with_nothing_to_fetch_waits_for_its_adapter(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        adapter = place.write("one", 1)
        worker = await place.worker("d1")
        for number in range(2):  # not loaded yet, then loaded
            spec = place.spec(f"r/{number}/1", adapter)
            assert worker.work.admit_decode(spec, None, skip_store=True) is None
            told = await place.gateway.until(spec.sequence_id)
            assert told.output() == place.expected("one"), told.error

    run(tmp_path, test)
