"""Drives the engine loop: steps go to an executor, answers come back to whoever waits.

The executor decides where a step computes: on a thread of its own in a process, in place on
virtual time. Everything else here happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    RunStep,
    StepDone,
    StepFailed,
)
from banyan_core.machine import Stepped
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.types import NS_PER_S, BlockHash
from banyan_runtime.clock import Clock
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, Recorder

T = TypeVar("T")


class StepExecutor(Protocol):
    """Runs one step at a time. `on_layer` is called on the event loop."""

    async def run(
        self, runner: Runner, plan: StepPlan, on_layer: Callable[[int], None]
    ) -> StepResult: ...

    async def close(self) -> None: ...


class ThreadExecutor:
    """One thread. A runner that models its time has the rest of it slept on the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="step")

    async def run(
        self, runner: Runner, plan: StepPlan, on_layer: Callable[[int], None]
    ) -> StepResult:
        loop = asyncio.get_running_loop()

        def tell(layer: int) -> None:
            loop.call_soon_threadsafe(on_layer, layer)

        result = await loop.run_in_executor(self._pool, runner.run, plan, tell)
        if result.modelled_ns:
            await asyncio.sleep(result.modelled_ns / NS_PER_S)
        return result

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class InlineExecutor:
    """Computes in place and sleeps the modelled time, layer by layer, as a real step takes it."""

    async def run(
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
                self._listener.step_started(command.plan)
                self._tasks.spawn_brief("step", self._run_step(command.plan))
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

    async def _run_step(self, plan: StepPlan) -> None:
        started_ns = self._clock.now_ns()
        try:
            result = await self._executor.run(self._runner, plan, self._listener.layer_done)
        except Exception as error:  # the guard around foreign code: a step may fail in any way
            self._logger.exception("step failed", extra={"step": plan.number})
            self.feed(StepFailed(plan.number, f"{type(error).__name__}: {error}"))
            return
        self.feed(StepDone(result, self._clock.now_ns() - started_ns))


def _answer(waiting: asyncio.Future[T] | None, value: T) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)
