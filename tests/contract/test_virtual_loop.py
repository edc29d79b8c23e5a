"""Virtual time: exact, in order, the same everywhere, and never slept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyan_core.types import NS_PER_S
from banyan_runtime.virtual_loop import (
    Deadlock,
    LeakedTasks,
    Livelock,
    UnhandledFailure,
    VirtualLoop,
    run_virtual,
)


def virtual_loop() -> VirtualLoop:
    return cast(VirtualLoop, asyncio.get_running_loop())


def test_a_day_passes_in_no_time() -> None:
    async def main() -> tuple[int, int]:
        clock = virtual_loop().clock
        started_unix_ns = clock.unix_ns()
        for _ in range(24):
            await asyncio.sleep(3600)
        return clock.now_ns(), clock.unix_ns() - started_unix_ns

    assert run_virtual(main) == (24 * 3600 * NS_PER_S, 24 * 3600 * NS_PER_S)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.integers(0, 10**15))
def test_timers_fire_by_time_then_by_the_order_in_which_they_were_set(
    delays_ns: list[int], start_ns: int
) -> None:
    async def main() -> list[tuple[int, int]]:
        loop = virtual_loop()
        await asyncio.sleep(start_ns / NS_PER_S)
        at_ns = loop.clock.now_ns()
        fired: list[tuple[int, int]] = []
        for number, delay_ns in enumerate(delays_ns):
            if number % 2:
                loop.call_at((at_ns + delay_ns) / NS_PER_S, fired.append, (delay_ns, number))
            else:
                loop.call_later(delay_ns / NS_PER_S, fired.append, (delay_ns, number))
        await asyncio.sleep(1)
        assert loop.clock.now_ns() == at_ns + NS_PER_S
        return fired

    expected = sorted((delay_ns, number) for number, delay_ns in enumerate(delays_ns))
    assert run_virtual(main) == expected


def test_a_nanosecond_is_not_lost_after_many_days() -> None:
    async def main() -> list[int]:
        clock = virtual_loop().clock
        await asyncio.sleep(20 * 24 * 3600)
        before_ns = clock.now_ns()
        await asyncio.sleep(1e-9)
        async with asyncio.timeout(3e-9):
            await asyncio.sleep(2e-9)
        return [before_ns, clock.now_ns() - before_ns]

    assert run_virtual(main) == [20 * 24 * 3600 * NS_PER_S, 3]


def test_timeouts_and_cancels_work_as_on_any_loop() -> None:
    async def main() -> list[str]:
        heard = []
        try:
            async with asyncio.timeout(2):
                await asyncio.sleep(3)
        except TimeoutError:
            heard.append(f"timeout at {virtual_loop().time()}")
        sleeper = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(1)
        sleeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        heard.append(f"cancelled at {virtual_loop().time()}")
        return heard

    assert run_virtual(main) == ["timeout at 2.0", "cancelled at 3.0"]


def test_cancelled_timers_do_not_pile_up() -> None:
    async def main() -> int:
        loop = virtual_loop()
        for _ in range(10_000):
            async with asyncio.timeout(3600):
                await asyncio.sleep(0.001)
        return len(loop._timers)

    assert run_virtual(main) < 1000


def test_waiting_for_what_never_comes_is_a_deadlock_that_names_the_task() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
        await task

    with pytest.raises(Deadlock, match="forgotten"):
        run_virtual(main)


def test_time_that_stands_still_is_told() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110  # a poll that never waits
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run_virtual(main)


def test_a_task_that_outlives_the_main_one_is_named() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(5), name="left over")
        await asyncio.sleep(1)
        assert not task.done()

    with pytest.raises(LeakedTasks, match="left over"):
        run_virtual(main)


def test_a_failure_that_nobody_looks_at_fails_the_run() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(UnhandledFailure) as caught:
        run_virtual(main)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_threads_are_refused() -> None:
    async def main() -> list[str]:
        errors = []
        try:
            await asyncio.to_thread(print)
        except RuntimeError as error:
            errors.append(str(error))
        loop, ready = asyncio.get_running_loop(), threading.Event()

        def intrude() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except RuntimeError as error:
                errors.append(str(error))
            ready.set()

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        return errors

    first, second = run_virtual(main)
    assert "InlineOffload" in first
    assert "other threads" in second


def test_named_random_sources_do_not_disturb_each_other() -> None:
    async def main() -> list[float]:
        loop = virtual_loop()
        first = loop.rng("arrivals").random()
        loop.rng("crashes").random()
        return [first, loop.rng("arrivals").random(), loop.rng("crashes").random()]

    one, again, other = run_virtual(main, seed=1)
    assert one == again != other
    assert run_virtual(main, seed=2)[0] != one


PROGRAM = """
import asyncio
from banyan_runtime.virtual_loop import run_virtual

async def player(name, rng, heard, turn, padding):
    for i in range(5):
        await asyncio.sleep(rng.choice([0, 1e-3, 2e-3]))
        async with turn:
            heard.append(f"{name}{i}")

async def main():
    loop = asyncio.get_running_loop()
    heard, turn = [], asyncio.Lock()
    names = ["ash", "birch", "cedar", "elm", "fir", "oak"]
    # The padding gives objects other addresses in each process.
    tasks = [
        asyncio.create_task(player(n, loop.rng(n), heard, turn, bytearray(hash(n) % 100_000)))
        for n in names
    ]
    await asyncio.sleep(0.003)
    for task in loop.pending_tasks()[1:4]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(" ".join(heard), loop.clock.now_ns())

run_virtual(main, seed=7)
"""


def test_the_order_is_the_same_under_any_hash_seed() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(outputs) == 1
    assert "ash0" in outputs.pop()
