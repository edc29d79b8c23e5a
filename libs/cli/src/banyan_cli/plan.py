"""What `banyan up` should start, restart, drain and stop, and when: pure, so that it can be tested.

The supervisor tells it what happened to processes and what the autoscaler wishes; it answers with
commands. Nothing is started twice at once, no wait and no row of restarts is endless, and a stop
takes the services down in stages: those that take work in first, what the others lean on last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from banyan_cli.plan_messages import (
    AllReady,
    BecameReady,
    Command,
    Exited,
    Fact,
    Finish,
    Kill,
    Say,
    Start,
    StopAsked,
    Terminate,
    Wished,
)
from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_S

START_TIMEOUT_NS = 120 * NS_PER_S
STOP_TIMEOUT_NS = 20 * NS_PER_S
FIRST_BACKOFF_NS = NS_PER_S // 4
MAX_BACKOFF_NS = 8 * NS_PER_S
STEADY_NS = 10 * NS_PER_S
"""A process that was ready for so long starts its next row of failures from zero."""
MAX_FAILURES = 12
"""Failures in a row after which a process is left alone."""
MAX_REPLICAS = 16
EXIT_NOT_STARTED = 2
"""The exit code of a service that cannot start as it is set up: a restart cannot help."""

START_RANK = {"valkey": 0}
STOP_RANK = {"gateway": 0, "autoscaler": 0, "prefill": 1, "decode": 1, "valkey": 3}
SCALABLE = ("prefill", "decode")


class Phase(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTING = "resting"
    STOPPING = "stopping"
    ENDED = "ended"
    GIVEN_UP = "given up"


@dataclass(slots=True)
class Process:
    """One slot of the mesh, over all lives of its process."""

    name: str
    service: str
    phase: Phase = Phase.WAITING
    since: int = 0
    wake: int | None = None
    num_failures: int = 0
    num_restarts: int = 0
    was_ready: bool = False
    killed: bool = False

    @property
    def runs(self) -> bool:
        return self.phase in (Phase.STARTING, Phase.READY, Phase.STOPPING)

    @property
    def listed(self) -> bool:
        """Whether peers should find it: not while it drains."""
        return self.phase not in (Phase.STOPPING, Phase.ENDED, Phase.GIVEN_UP)


def backoff_ns(num_failures: int) -> int:
    """How long to wait after so many failures in a row: doubling, bounded."""
    return min(FIRST_BACKOFF_NS << min(num_failures - 1, 32), MAX_BACKOFF_NS)


class Plan:
    """The state machine. `counts` says how many of each service there are at first."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._processes: dict[str, Process] = {}
        self._counts = dict(counts)
        for service, count in counts.items():
            for index in range(count):
                self._add(service, index)
        self._wish: dict[str, int] = {}
        self._stopping = False
        self._was_up = False
        self._exit_code = 0
        self._finished = False
        self._commands: list[Command] = []

    @property
    def processes(self) -> Sequence[Process]:
        """For display and for the directory; read only."""
        return tuple(self._processes.values())

    def step(self, now: int, facts: Sequence[Fact]) -> Stepped[Command]:
        self._commands = []
        for fact in facts:
            match fact:
                case BecameReady(name):
                    self._on_ready(now, name)
                case Exited():
                    self._on_exit(now, fact)
                case Wished(replicas):
                    self._wish = dict(replicas)
                case StopAsked():
                    self._on_stop()
        if self._stopping:
            self._stop_stage(now)
        else:
            self._fulfil_wish(now)
            self._start_due(now)
        self._enforce_timeouts(now)
        return Stepped(self._commands, self._next_wake())

    # ------------------------------------------------------------ facts

    def _on_ready(self, now: int, name: str) -> None:
        process = self._processes.get(name)
        if process is None or process.phase is not Phase.STARTING:
            return
        process.phase, process.since, process.wake = Phase.READY, now, None
        process.was_ready = True
        again = " again" if process.num_restarts else ""
        self._say(f"{name} is ready{again}")
        if not self._was_up and all(p.was_ready for p in self._processes.values()):
            self._was_up = True
            self._commands.append(AllReady())

    def _on_exit(self, now: int, exited: Exited) -> None:
        process = self._processes[exited.name]
        if process.phase is Phase.STOPPING or self._stopping:
            self._end(process)
            return
        if process.phase is Phase.READY and now - process.since >= STEADY_NS:
            process.num_failures = 0
        process.num_failures += 1
        process.phase, process.wake = Phase.GIVEN_UP, None
        how = f"was killed by signal {-exited.code}" if exited.code < 0 else f"exited {exited.code}"
        words = f": {exited.last_words}" if exited.last_words else ""
        if exited.code == EXIT_NOT_STARTED and not self._was_up:
            self._say(f"{exited.name} cannot start{words}", trouble=True)
            self._abort()
        elif process.num_failures >= MAX_FAILURES:
            self._say(f"{exited.name} {how}{words}; given up after {MAX_FAILURES}", trouble=True)
            if not self._was_up:
                self._abort()
        else:
            wait = backoff_ns(process.num_failures)
            process.phase, process.since, process.wake = Phase.RESTING, now, now + wait
            again = f"starting it again in {wait / NS_PER_S:g} s"
            self._say(f"{exited.name} {how}{words}; {again}", trouble=True)

    def _fulfil_wish(self, now: int) -> None:
        """The last wish, once the mesh is up: before, it would be about what is not there yet."""
        if self._was_up:
            for service in SCALABLE:
                if service in self._wish:
                    self._scale(now, service, min(max(self._wish[service], 0), MAX_REPLICAS))
            self._wish = {}

    def _scale(self, now: int, service: str, wanted: int) -> None:
        there = [p for p in self._processes.values() if p.service == service and p.listed]
        while len(there) < wanted:
            index = next(i for i in range(2 * MAX_REPLICAS) if self._is_free(service, i))
            there.append(self._add(service, index))
            self._say(f"{there[-1].name} joins: {wanted} {service} workers are wished")
        for process in reversed(there[wanted:]):
            self._say(f"{process.name} drains: {wanted} {service} workers are wished")
            self._take_down(now, process)

    def _is_free(self, service: str, index: int) -> bool:
        return f"{service}-{index}" not in self._processes

    def _on_stop(self) -> None:
        if self._stopping:
            self._say("in a hurry: killing what still runs", trouble=True)
            for process in self._processes.values():
                if process.runs:
                    self._kill(process)
        else:
            self._say("stopping: what runs may finish; once more kills it")
        self._stopping = True

    # ------------------------------------------------------------ transitions

    def _add(self, service: str, index: int) -> Process:
        alone = self._counts.get(service) == 1 and service not in SCALABLE
        name = service if alone else f"{service}-{index}"
        self._processes[name] = Process(name, service)
        return self._processes[name]

    def _start_due(self, now: int) -> None:
        for process in self._processes.values():
            due = process.wake is not None and process.wake <= now
            waits = process.phase is Phase.WAITING and self._may_start(process)
            if waits or (process.phase is Phase.RESTING and due):
                process.num_restarts += process.phase is Phase.RESTING
                process.phase, process.since = Phase.STARTING, now
                process.wake, process.killed = now + START_TIMEOUT_NS, False
                self._commands.append(Start(process.name, process.service))

    def _may_start(self, process: Process) -> bool:
        rank = START_RANK.get(process.service, 1)
        below = (p for p in self._processes.values() if START_RANK.get(p.service, 1) < rank)
        return all(p.was_ready for p in below)

    def _take_down(self, now: int, process: Process) -> None:
        if not process.runs:
            self._end(process)
            return
        process.phase, process.since = Phase.STOPPING, now
        process.wake, process.killed = now + STOP_TIMEOUT_NS, False
        self._commands.append(Terminate(process.name))

    def _stop_stage(self, now: int) -> None:
        left = [p for p in self._processes.values() if p.phase is not Phase.ENDED]
        for process in left:
            if not process.runs:
                self._end(process)
        left = [p for p in left if p.phase is not Phase.ENDED]
        if left:
            stage = min(STOP_RANK.get(p.service, 2) for p in left)
            for process in left:
                in_stage = STOP_RANK.get(process.service, 2) == stage
                if in_stage and process.phase is not Phase.STOPPING:
                    self._take_down(now, process)
        elif not self._finished:
            self._finished = True
            self._commands.append(Finish(self._exit_code))

    def _end(self, process: Process) -> None:
        process.phase, process.wake = Phase.ENDED, None
        if not self._stopping:
            del self._processes[process.name]
            self._say(f"{process.name} has left")

    def _abort(self) -> None:
        self._stopping, self._exit_code = True, EXIT_NOT_STARTED

    def _enforce_timeouts(self, now: int) -> None:
        for process in self._processes.values():
            if process.runs and process.wake is not None and process.wake <= now:
                self._kill(process)
                self._say(f"{process.name} was too slow: killed", trouble=True)

    def _kill(self, process: Process) -> None:
        if not process.killed:
            process.killed, process.wake = True, None
            self._commands.append(Kill(process.name))

    def _say(self, text: str, *, trouble: bool = False) -> None:
        self._commands.append(Say(text, trouble))

    def _next_wake(self) -> int | None:
        wakes = [p.wake for p in self._processes.values() if p.wake is not None]
        return min(wakes, default=None)
