"""The one pump: feeds facts to a machine in order, wakes it in time, hands on its commands.

Facts that arrive while the loop is busy are given as one batch, so a burst of tokens costs one
step. A step is a callback of the event loop, due in its next turn: every token of every request
passes several pumps, and a task that is woken by an event costs it one turn more. Commands are
applied synchronously and in order; an adapter that must wait starts a task and feeds the outcome
back as a fact. With a recorder every input and the commands it gave are written down, in order:
that is what a replay reads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from banyan_core.machine import Machine
from banyan_core.types import NS_PER_S
from banyan_runtime.clock import Clock

F = TypeVar("F")
C = TypeVar("C")


class Recorder(Protocol):
    def record(self, now: int, facts: Sequence[object], commands: Sequence[object]) -> None: ...


class PumpOverflow(Exception):
    """More facts wait than the bound allows: the decider cannot keep up."""


class Pump(Generic[F, C]):
    """Drives one machine. `feed` from the loop's own thread only; `run` is the task."""

    def __init__(
        self,
        machine: Machine[F, C],
        clock: Clock,
        apply: Callable[[C], None],
        recorder: Recorder | None = None,
        max_facts: int = 100_000,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._apply = apply
        self._recorder = recorder
        self._max_facts = max_facts
        self._facts: list[F] = []
        self._is_fed = False
        self._running: _Running | None = None

    def feed(self, *facts: F) -> None:
        """Queue facts for the next step, which is due even without any.

        Raises PumpOverflow past the bound.
        """
        if len(self._facts) + len(facts) > self._max_facts:
            raise PumpOverflow(f"{len(self._facts)} facts are waiting")
        self._facts.extend(facts)
        self._is_fed = True
        if self._running is not None:
            self._running.soon()

    async def run(self) -> None:
        """Step until cancelled. An exception of the machine or of `apply` ends the pump."""
        self._running = running = _Running(self._step, self._clock.now_ns)
        if self._is_fed:
            running.soon()
        try:
            await running.failed
        finally:
            self._running = None
            running.close()

    def _step(self, running: _Running) -> None:
        facts, self._facts, self._is_fed = self._facts, [], False
        now = self._clock.now_ns()
        stepped = self._machine.step(now, facts)
        if self._recorder is not None:
            self._recorder.record(now, facts, stepped.commands)
        for command in stepped.commands:
            self._apply(command)
        running.until(stepped.next_wake)


class _Running:
    """When the next step is due: in the loop's next turn, or at the machine's next wake.

    Wakes mostly move to later before they come, so a timer is left alone that is not too late: it
    sees when it fires that it is early. Steps run in the context of `run`, whoever fed them: facts
    of one request must not carry its trace into another's.
    """

    def __init__(self, step: Callable[[_Running], None], now_ns: Callable[[], int]) -> None:
        self._step = step
        self._now_ns = now_ns
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0  # the wake that it was set for
        self._wake_ns: int | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()

    def soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._run, context=self._context)

    def until(self, wake_ns: int | None) -> None:
        self._wake_ns = wake_ns
        if wake_ns is None or (self._timer is not None and self._timer_ns <= wake_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        left_s = max(0, wake_ns - self._now_ns()) / NS_PER_S
        self._timer = self._loop.call_later(left_s, self._ring, context=self._context)
        self._timer_ns = wake_ns

    def _ring(self) -> None:
        self._timer = None
        if self._wake_ns is not None and self._wake_ns > self._timer_ns:
            self.until(self._wake_ns)
        elif self._wake_ns is not None:
            self.soon()

    def _run(self) -> None:
        self._soon = None
        if self.failed.done():
            return
        try:
            self._step(self)
        except Exception as error:
            self.failed.set_exception(error)

    def close(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
