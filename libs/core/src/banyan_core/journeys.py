"""All journeys of one gateway as one machine, so that a step's tokens cost one step here.

Facts name their request directly or through a sequence id, `request/choice/attempt`. News of a
request that has ended is answered only where a worker must be told so. Wake-ups sit in a heap
with lazy deletion: a step costs what happened in it, not what is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from banyan_core.choice import Choice, Phase
from banyan_core.journey import Journey, JourneyLimits
from banyan_core.journey_messages import (
    Accepted,
    AckEnd,
    Admitted,
    CancelSequence,
    ClientGone,
    GatewayStopping,
    JourneyCommand,
    JourneyFact,
    NotPlaced,
    Placed,
    Refused,
    Reported,
    Stopped,
    WorkerLost,
)
from banyan_core.machine import Stepped
from banyan_core.types import SequenceReport


class Journeys:
    """The gateway's decider: `Machine[JourneyFact, JourneyCommand]`."""

    def __init__(self, gateway_id: str, gateway_epoch: int, limits: JourneyLimits) -> None:
        self._gateway_id = gateway_id
        self._gateway_epoch = gateway_epoch
        self._limits = limits
        self._open: dict[str, Journey] = {}
        self._wakes: list[tuple[int, str]] = []
        self._commands: list[JourneyCommand] = []

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_waiting(self) -> int:
        """Open requests that no worker works on now."""
        return sum(
            all(choice.phase is not Phase.RUNNING for choice in journey.choices)
            for journey in self._open.values()
        )

    def journey(self, request_id: str) -> Journey | None:
        """An open journey, to look at."""
        return self._open.get(request_id)

    def step(self, now: int, facts: Sequence[JourneyFact]) -> Stepped[JourneyCommand]:
        for fact in facts:
            self._take(now, fact)
        while self._wakes and self._wakes[0][0] <= now:
            _, request_id = heappop(self._wakes)
            journey = self._open.get(request_id)
            if journey is not None:
                journey.wake(now)
                self._settle(journey)
        commands, self._commands = self._commands, []
        return Stepped(commands, self._wakes[0][0] if self._wakes else None)

    def _take(self, now: int, fact: JourneyFact) -> None:
        if isinstance(fact, Reported):
            for report in fact.reports:
                self._reported(now, fact.worker_id, report)
        elif isinstance(fact, Accepted):
            self._accept(now, fact)
        elif isinstance(fact, Admitted | Refused):
            self._answered(now, fact)
        elif isinstance(fact, WorkerLost):
            for journey in tuple(self._open.values()):
                journey.worker_lost(now, fact.worker_id, fact.epoch, fact.reason)
                self._settle(journey)
        elif isinstance(fact, GatewayStopping):
            for journey in tuple(self._open.values()):
                journey.stop_serving(now)
                self._settle(journey)
        else:
            self._about_request(now, fact)

    def _accept(self, now: int, fact: Accepted) -> None:
        journey = Journey(
            fact, now, self._gateway_id, self._gateway_epoch, self._limits, self._emit
        )
        self._open[fact.request_id] = journey
        self._settle(journey)

    def _about_request(self, now: int, fact: Placed | NotPlaced | Stopped | ClientGone) -> None:
        journey = self._open.get(fact.request_id)
        if journey is None:
            return
        if isinstance(fact, Placed):
            journey.placed(now, fact)
        elif isinstance(fact, NotPlaced):
            journey.not_placed(now, fact)
        elif isinstance(fact, Stopped):
            journey.stopped(now, journey.choices[fact.choice], fact.num_tokens)
        else:
            journey.client_gone(now, fact.reason)
        self._settle(journey)

    def _answered(self, now: int, fact: Admitted | Refused) -> None:
        journey, choice = self._find(fact.sequence_id)
        if journey is None or choice is None:
            self._commands.append(CancelSequence(fact.worker_id, fact.sequence_id))
            return
        if isinstance(fact, Admitted):
            journey.admitted(now, fact.worker_id, choice, fact.sequence_id)
        else:
            journey.refused(now, choice, fact.sequence_id, fact.refusal, fact.unreachable)
        self._settle(journey)

    def _reported(self, now: int, worker_id: str, report: SequenceReport) -> None:
        journey, choice = self._find(report.sequence_id)
        if journey is None or choice is None:
            if report.finish is not None:
                self._commands.append(AckEnd(worker_id, report.sequence_id))
            return
        journey.reported(now, worker_id, choice, report)
        self._settle(journey)

    def _find(self, sequence_id: str) -> tuple[Journey | None, Choice | None]:
        request_id, choice, _ = sequence_id.rsplit("/", 2)
        journey = self._open.get(request_id)
        return journey, None if journey is None else journey.choices[int(choice)]

    def _emit(self, command: JourneyCommand) -> None:
        self._commands.append(command)

    def _settle(self, journey: Journey) -> None:
        """Forget an ended journey; see that a waiting one is woken."""
        request_id = journey.accepted.request_id
        if journey.ended:
            self._open.pop(request_id, None)
            return
        wake = journey.next_wake()
        if wake is not None and wake != journey.booked_wake:
            journey.booked_wake = wake
            heappush(self._wakes, (wake, request_id))
