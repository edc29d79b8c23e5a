"""Drives the engine loop: steps go to an executor, answers come back to whoever waits.

The executor decides where a step computes: on a thread of its own in a process, in place on
virtual time. When one ends that thread itself begins what the engine loop has prepared, and the
event loop hears of it. Everything else here happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol, TypeVar

from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import (
    EngineCommand,
    EngineFact,
    ImportReady,
    ImportRefused,
    ImportWanted,
    Pinned,
    PinWanted,
    Prepare,
    Revoke,
    RunStep,
    StepBegun,
    StepDone,
    StepFailed,
    StepRuns,
)
from banyan_core.machine import Stepped
from banyan_core.next_step import NextStep
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.types import NS_PER_S, BlockHash
from banyan_runtime.clock import Clock
from banyan_runtime.core_turns import CoreTurns
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, Recorder

T = TypeVar("T")


class StepExecutor(Protocol):
    """Runs a step and those that follow it by themselves. `on_layer` is called on the event loop.

    `on_end` is called wherever a step has ended and says which is to begin there at once. Where
    there is a thread, the first step begins with the call, not with the awaiting.
    """

    def run(
        self,
        runner: Runner,
        plan: StepPlan,
        on_layer: Callable[[int], None],
        on_end: Callable[[StepResult], StepPlan | None],
    ) -> Awaitable[None]: ...

    async def close(self) -> None: ...


class ThreadExecutor:
    """One thread. A runner that models its time has it slept there.

    With `turns` a step computes while its process has the turn for the machine's cores.
    """

    def __init__(self, turns: CoreTurns | None = None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step")
        self._turns = turns

    def run(
        self,
        runner: Runner,
        plan: StepPlan,
        on_layer: Callable[[int], None],
        on_end: Callable[[StepResult], StepPlan | None],
    ) -> Awaitable[None]:
        loop = asyncio.get_running_loop()

        def tell(layer: int) -> None:
            loop.call_soon_threadsafe(on_layer, layer)

        def run_all() -> None:
            following: StepPlan | None = plan
            while following is not None:
                with self._turns.turn() if self._turns else nullcontext():
                    result = runner.run(following, tell)
                if result.modelled_ns:
                    time.sleep(result.modelled_ns / NS_PER_S)
                following = on_end(result)

        return loop.run_in_executor(self._pool, run_all)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class InlineExecutor:
    """Computes in place and sleeps the modelled time, layer by layer, as a real step takes it."""

    async def run(
        self,
        runner: Runner,
        plan: StepPlan,
        on_layer: Callable[[int], None],
        on_end: Callable[[StepResult], StepPlan | None],
    ) -> None:
        following: StepPlan | None = plan
        while following is not None:
            following = on_end(await self.run_one(runner, following, on_layer))

    async def run_one(
        self, runner: Runner, plan: StepPlan, on_layer: Callable[[int], None]
    ) -> StepResult:
        layers: list[int] = []
        result = runner.run(plan, layers.append)
        share_s = result.modelled_ns / NS_PER_S / max(1, len(layers))
        for layer in layers:
            await asyncio.sleep(share_s)
            on_layer(layer)
        return result

    async def close(self) -> None:
        return


class StepListener(Protocol):
    """Who follows the steps. All calls come on the event loop, in order."""

    def step_started(self, plan: StepPlan) -> None: ...

    def step_prepared(self, next_step: NextStep) -> None:
        """It may begin any time from now on, by itself."""
        ...

    def step_begun(self) -> None:
        """What was prepared runs: told when the step before it has ended."""
        ...

    def layer_done(self, layer: int) -> None:
        """Layer `layer` of the running step has written all its K and V."""
        ...

    def step_ended(self) -> None:
        """Its blocks may change hands from now on."""
        ...

    def on_command(self, command: EngineCommand) -> None:
        """A command that is neither a step nor an answer to `reserve` or `pin`."""
        ...


class StepLoop:
    """The asynchronous face of an `EngineLoop`."""

    def __init__(
        self,
        engine: EngineLoop,
        runner: Runner,
        executor: StepExecutor,
        clock: Clock,
        tasks: Tasks,
        listener: StepListener,
        logger: logging.Logger,
        recorder: Recorder | None = None,
    ) -> None:
        self.engine = engine
        self._runner = runner
        self._executor = executor
        self._clock = clock
        self._tasks = tasks
        self._listener = listener
        self._logger = logger
        self._pump = Pump[EngineFact, EngineCommand](self, clock, self._apply, recorder)
        self._reserving: dict[str, asyncio.Future[Mapping[BlockHash, int] | None]] = {}
        self._pinning: dict[str, asyncio.Future[Mapping[BlockHash, int]]] = {}
        # Whoever takes it out has it: the step's thread to begin it, or this one to revoke it.
        self._next: deque[NextStep] = deque(maxlen=1)

    def start(self) -> None:
        self._tasks.spawn("engine", self._pump.run())

    def feed(self, *facts: EngineFact) -> None:
        self._pump.feed(*facts)

    def step(self, now: int, facts: Sequence[EngineFact]) -> Stepped[EngineCommand]:
        """The pump's machine is this: the listener learns of a step's end before its commit."""
        if any(isinstance(fact, (StepDone, StepFailed)) for fact in facts):
            self._listener.step_ended()
        return self.engine.step(now, facts)

    async def reserve(
        self, import_id: str, hashes: Sequence[BlockHash]
    ) -> Mapping[BlockHash, int] | None:
        """Blocks to import the absent ones of `hashes` into; None when there is no room.

        The caller must end it: by `ImportDone`, or by `Release`, also when it is cancelled here.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Mapping[BlockHash, int] | None] = loop.create_future()
        self._reserving[import_id] = answer
        self.feed(ImportWanted(import_id, tuple(hashes)))
        return await answer

    async def pin(self, pin_id: str, hashes: Sequence[BlockHash]) -> Mapping[BlockHash, int]:
        """Keep those of `hashes` that are here, until `Release(pin_id)`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Mapping[BlockHash, int]] = loop.create_future()
        self._pinning[pin_id] = answer
        self.feed(PinWanted(pin_id, tuple(hashes)))
        return await answer

    def _apply(self, command: EngineCommand) -> None:
        match command:
            case RunStep():
                self._next.clear()
                self._listener.step_started(command.plan)
                self._run_steps(command.plan)
                self.feed(StepRuns(command.plan.number))
            case Prepare():
                self._listener.step_prepared(command.next_step)
                self._next.append(command.next_step)
            case Revoke():
                self._next.clear()
            case StepBegun():
                self._listener.step_begun()
            case ImportReady():
                blocks = dict(zip(command.hashes, command.block_ids, strict=True))
                _answer(self._reserving.pop(command.import_id, None), blocks)
            case ImportRefused():
                _answer(self._reserving.pop(command.import_id, None), None)
            case Pinned():
                blocks = dict(zip(command.hashes, command.block_ids, strict=True))
                _answer(self._pinning.pop(command.pin_id, None), blocks)
            case _:
                self._listener.on_command(command)

    def _run_steps(self, plan: StepPlan) -> None:
        """Before anything else happens here: a first token waits for it."""
        loop = asyncio.get_running_loop()
        number, started_ns = plan.number, self._clock.now_ns()

        def ended(result: StepResult) -> StepPlan | None:
            """On the step's thread, which has no time to lose."""
            nonlocal number, started_ns
            following = self._take_next(result)
            now = self._clock.now_ns()
            facts: list[EngineFact] = [StepDone(result, now - started_ns, following is not None)]
            if following is not None:
                number, started_ns = following.number, now
                facts.append(StepRuns(number))
            loop.call_soon_threadsafe(self.feed, *facts)
            return following

        async def watch(running: Awaitable[None]) -> None:
            try:
                await running
            except Exception as error:  # the guard around foreign code: a step may fail in any way
                self._logger.exception("step failed", extra={"step": number})
                self.feed(StepFailed(number, f"{type(error).__name__}: {error}"))

        running = self._executor.run(self._runner, plan, self._listener.layer_done, ended)
        self._tasks.spawn_brief("step", watch(running))

    def _take_next(self, result: StepResult) -> StepPlan | None:
        try:
            return self._next.pop().plan(result)
        except IndexError:
            return None


def _answer(waiting: asyncio.Future[T] | None, value: T) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)
