"""The step loop over a real thread: steps that begin there by themselves, and what stops them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.core.engines import BLOCK_SIZE, PROMPT, card, echoed, spec

from banyan_core.echo import EchoLatency, EchoRunner
from banyan_core.engine_loop import EngineLoop
from banyan_core.engine_messages import EngineCommand, Report, Submit
from banyan_core.next_step import NextStep
from banyan_core.runner import Runner, StepPlan, StepResult
from banyan_core.scheduler import EngineLimits
from banyan_runtime.clock import SystemClock
from banyan_runtime.core_turns import CoreTurns
from banyan_runtime.lifespan import Tasks
from banyan_worker.step_loop import StepLoop, ThreadExecutor

TIMEOUT_S = 60.0


class Gated(EchoRunner):
    """Its steps end when they may: at first those whose next one is prepared."""

    def __init__(self) -> None:
        super().__init__(64, BLOCK_SIZE, EchoLatency(0, 0, 0))
        self.plans: list[StepPlan] = []
        self.gates = [threading.Event() for _ in range(100)]

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        self.plans.append(plan)
        result = super().run(plan, on_layer)
        assert self.gates[plan.number].wait(TIMEOUT_S)
        if result.number == 13:
            raise RuntimeError("the thirteenth")
        return result


class Together(Gated):
    """Says how many of its kind were in a step at once."""

    num_inside = most_inside = 0

    def run(self, plan: StepPlan, on_layer: Callable[[int], None]) -> StepResult:
        Together.num_inside += 1
        Together.most_inside = max(Together.most_inside, Together.num_inside)
        time.sleep(0.001)
        result = super().run(plan, on_layer)
        Together.num_inside -= 1
        return result


class Followed:
    """A `StepListener` that opens the gates, but `held` ones, and keeps what was said."""

    def __init__(self, runner: Gated, held: tuple[int, ...] = ()) -> None:
        self._runner = runner
        self._held = held
        self.tokens: dict[str, list[int]] = {}
        self.errors: dict[str, str] = {}
        self.num_started = self.num_begun = 0
        self.prepared = asyncio.Event()
        self.ended = asyncio.Event()

    def step_started(self, plan: StepPlan) -> None:
        self.num_started += 1

    def step_prepared(self, next_step: NextStep) -> None:
        if next_step.number - 1 in self._held:
            self.prepared.set()
        else:
            self._runner.gates[next_step.number - 1].set()

    def step_begun(self) -> None:
        self.num_begun += 1

    def layer_done(self, layer: int) -> None: ...

    def step_ended(self) -> None: ...

    def on_command(self, command: EngineCommand) -> None:
        if isinstance(command, Report):
            for one in command.sequences:
                said = self.tokens.setdefault(one.sequence_id, [])
                said += [token.token_id for token in one.tokens]
                if one.finish is not None:
                    self.errors[one.sequence_id] = one.error
                    self.ended.set()


class Noting(ThreadExecutor):
    """Notes when steps are given to its thread."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes

    def run(
        self,
        runner: Runner,
        plan: StepPlan,
        on_layer: Callable[[int], None],
        on_end: Callable[[StepResult], StepPlan | None],
    ) -> Awaitable[None]:
        self._notes.append("given to the thread")
        return super().run(runner, plan, on_layer, on_end)


class NotingTurns(Followed):
    """Notes when the event loop comes to what was due behind the start of a step."""

    def __init__(self, runner: Gated, notes: list[str]) -> None:
        super().__init__(runner)
        self._notes = notes

    def step_started(self, plan: StepPlan) -> None:
        super().step_started(plan)
        asyncio.get_running_loop().call_soon(self._notes.append, "next turn")


@asynccontextmanager
async def step_loop(
    runner: Gated,
    listener: Followed,
    turns: CoreTurns | None = None,
    executor: ThreadExecutor | None = None,
) -> AsyncIterator[StepLoop]:
    tasks, executor = Tasks(), executor or ThreadExecutor(turns)
    engine = EngineLoop(card(), 64, EngineLimits())
    logger = logging.getLogger("test")
    loop = StepLoop(engine, runner, executor, SystemClock(), tasks, listener, logger)
    loop.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield loop
    finally:
        for gate in runner.gates:
            gate.set()
        await tasks.cancel_all()
        await executor.close()


async def test_a_step_is_given_to_its_thread_at_once() -> None:
    notes: list[str] = []
    runner = Gated()
    listener = NotingTurns(runner, notes)
    runner.gates[1].set()
    async with step_loop(runner, listener, executor=Noting(notes)) as loop:
        loop.feed(Submit(spec("a", PROMPT, max_tokens=1), hold=False))
        await listener.ended.wait()
    assert notes == ["given to the thread", "next turn"]


async def test_steps_of_decodes_follow_one_another_on_the_thread() -> None:
    runner = Gated()
    listener = Followed(runner)
    asked = spec("a", PROMPT, max_tokens=12)
    runner.gates[12].set()
    async with step_loop(runner, listener) as loop:
        loop.feed(Submit(asked, hold=False))
        await listener.ended.wait()
        assert listener.tokens["a"] == echoed(asked)
        assert (listener.num_started, listener.num_begun) == (1, 11)
        assert loop.engine.idle and loop.engine.num_used_blocks == 0


async def test_who_arrives_while_a_step_runs_is_in_the_next() -> None:
    runner = Gated()
    listener = Followed(runner, held=(4,))
    async with step_loop(runner, listener) as loop:
        loop.feed(Submit(spec("a", PROMPT, max_tokens=12), hold=False))
        await listener.prepared.wait()
        loop.feed(Submit(spec("b", PROMPT[5:], max_tokens=3), hold=False))
        await loop.pin("the engine has taken it in when it answers this", ())
        for gate in runner.gates:
            gate.set()
        while len(listener.errors) < 2:
            listener.ended.clear()
            await listener.ended.wait()
    names = [[item.sequence_id for item in plan.items] for plan in runner.plans]
    assert names[:5] == [["a"]] * 4 + [["a", "b"]]


async def test_a_step_that_began_by_itself_and_raised_fails_its_sequences() -> None:
    runner = Gated()
    listener = Followed(runner)
    runner.gates[13].set()
    async with step_loop(runner, listener) as loop:
        loop.feed(Submit(spec("a", PROMPT, max_tokens=20), hold=False))
        await listener.ended.wait()
        assert listener.errors["a"] == "RuntimeError: the thirteenth"
        assert len(listener.tokens["a"]) == 12
        again = spec("b", PROMPT, max_tokens=3)
        runner.gates[16].set()
        listener.ended.clear()
        loop.feed(Submit(again, hold=False))
        await listener.ended.wait()
        assert listener.tokens["b"] == echoed(again)


async def test_steps_of_workers_that_take_turns_are_never_at_once(tmp_path: Path) -> None:
    """Those that begin by themselves wait for a turn as well."""
    logger = logging.getLogger("test")
    runners = [Together(), Together()]
    listeners = [Followed(runner) for runner in runners]
    first, second = (CoreTurns(tmp_path, logger, TIMEOUT_S) for _ in runners)
    for runner in runners:
        runner.gates[12].set()
    async with (
        step_loop(runners[0], listeners[0], first) as one,
        step_loop(runners[1], listeners[1], second) as other,
    ):
        for loop in (one, other):
            loop.feed(Submit(spec("a", PROMPT, max_tokens=12), hold=False))
        for listener in listeners:
            await listener.ended.wait()
            assert listener.num_begun > 0
    assert Together.most_inside == 1
