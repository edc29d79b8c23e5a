"""The one pump: feeds facts to a machine in order, wakes it in time, hands on its commands.

Facts that arrive while the loop is busy are given as one batch, so a burst of tokens costs one
step. Commands are applied synchronously and in order; an adapter that must wait starts a task
and feeds the outcome back as a fact. With a recorder every input and the commands it gave are
written down, in order: that is what a replay reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from banyan_core.machine import Machine
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
        self._wake_ns: int | None = None
        self._fed = asyncio.Event()

    def feed(self, *facts: F) -> None:
        """Queue facts for the next step. Raises PumpOverflow past the bound."""
        if len(self._facts) + len(facts) > self._max_facts:
            raise PumpOverflow(f"{len(self._facts)} facts are waiting")
        self._facts.extend(facts)
        self._fed.set()

    async def run(self) -> None:
        """Step until cancelled. An exception of the machine or of `apply` ends the pump."""
        while True:
            await self._wait()
            self._fed.clear()
            facts, self._facts = self._facts, []
            now = self._clock.now_ns()
            stepped = self._machine.step(now, facts)
            self._wake_ns = stepped.next_wake
            if self._recorder is not None:
                self._recorder.record(now, facts, stepped.commands)
            for command in stepped.commands:
                self._apply(command)

    async def _wait(self) -> None:
        if self._fed.is_set():
            await asyncio.sleep(0)
            return
        if self._wake_ns is None:
            await self._fed.wait()
            return
        left_s = (self._wake_ns - self._clock.now_ns()) / 1e9
        if left_s <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(left_s):
                await self._fed.wait()
        except TimeoutError:
            return
