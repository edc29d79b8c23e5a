"""All journeys of one gateway as one machine, so that a step's tokens cost one step here.

Facts name their request directly or through a sequence id, `request/choice/attempt`. News of a
request that has ended is answered only where a worker must be told so. Wake-ups sit in a heap
with lazy deletion: a step costs what happened in it, not what is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from banyan_core.choice import Choice, Phase
from banyan_core.journey import Journey
from banyan_core.journey_limits import JourneyLimits
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
from banyan_core.queue import Queue
from banyan_core.types import SequenceReport, ShedReason


class Journeys:
    """The gateway's decider: `Machine[JourneyFact, JourneyCommand]`."""

    def __init__(self, gateway_id: str, gateway_epoch: int, limits: JourneyLimits) -> None:
        self._gateway = (gateway_id, gateway_epoch)
        self._limits = limits
        self._queue = Queue(limits.queue)
        self._num_accepted = 0
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

    def place_in_line(self, request_id: str) -> tuple[int, int | None] | None:
        """How many go before an open request, and how long it may wait; None: it does not wait."""
        journey = self._open.get(request_id)
        return None if journey is None else self._queue.place_in_line(journey.choices[0].ticket)

    def expected_wait_ns(self) -> int | None:
        """Of a request that would come last now; None when it is not known."""
        return self._queue.expected_wait_ns()

    def judge_unread(self, now: int, priority: int) -> tuple[ShedReason, str] | None:
        """Why a new request of this class would be shed for certain; None: it has to be read."""
        shed = self._queue.judge_unread(now, priority)
        return None if shed is None else (shed.reason, shed.message)

    def num_retries_left(self, now: int) -> int:
        return self._queue.budget.num_left(now)

    def retry_after_ns(self, request_id: str) -> int:
        """What a request that is turned away now should be told."""
        return self._queue.retry_after_ns(request_id)

    def step(self, now: int, facts: Sequence[JourneyFact]) -> Stepped[JourneyCommand]:
        self._queue.pass_time(now)
        for fact in facts:
            self._take(now, fact)
        while self._wakes and self._wakes[0][0] <= now:
            _, request_id = heappop(self._wakes)
            journey = self._open.get(request_id)
            if journey is not None:
                journey.wake(now)
                self._settle(journey)
        self._give_turns(now)
        commands, self._commands = self._commands, []
        return Stepped(commands, self._next_wake(now))

    def _give_turns(self, now: int) -> None:
        while (ticket := self._queue.next_turn(now)) is not None:
            journey = self._open[ticket.request_id]
            journey.turn(now, journey.choices[ticket.choice])
            self._settle(journey)

    def _next_wake(self, now: int) -> int | None:
        wake = self._queue.next_wake(now)
        if self._wakes and (wake is None or self._wakes[0][0] < wake):
            return self._wakes[0][0]
        return wake

    def _take(self, now: int, fact: JourneyFact) -> None:
        if isinstance(fact, Reported):
            for report in fact.reports:
                self._reported(now, fact.worker_id, report)
        elif isinstance(fact, Accepted):
            self._accept(now, fact)
        elif isinstance(fact, Admitted | Refused):
            self._answered(now, fact)
        elif isinstance(fact, WorkerLost):
            self._queue.gate.worker_free(fact.worker_id)
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
        self._num_accepted += 1
        journey = Journey(
            fact, self._num_accepted, self._gateway, self._limits, self._queue, self._emit
        )
        self._open[fact.request_id] = journey
        first = journey.choices[0]
        shed = self._queue.judge(now, first.ticket, journey.waiting.latest_start_ns())
        if shed is None or shed.ticket is not first.ticket:
            journey.waiting.join(now, first)
        if shed is not None:
            loser = self._open[shed.ticket.request_id]
            loser.shed(now, shed.reason, shed.message)
            self._settle(loser)
        self._give_turns(now)
        journey.waiting.note(first)
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
