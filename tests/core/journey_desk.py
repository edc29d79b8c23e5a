"""A gateway's place before its journeys: gives them facts, keeps their commands."""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    Accepted,
    Deliver,
    EndRequest,
    JourneyCommand,
    JourneyFact,
    Place,
    Placed,
    Reported,
    StartDecode,
    StartPrefill,
)
from banyan_core.journeys import Journeys
from banyan_core.placement import Decision, Placement
from banyan_core.types import (
    Finish,
    OutputToken,
    Role,
    SamplingParams,
    SequenceFigures,
    SequenceReport,
    WorkerRef,
)

P = WorkerRef("p0", 1, "p0:1", Role.PREFILL)
D = WorkerRef("d0", 1, "d0:1", Role.DECODE)
D2 = WorkerRef("d1", 1, "d1:1", Role.DECODE)
DECISION = Decision("test", 1)


@dataclass
class Desk:
    """Plays the gateway: keeps time and sorts the commands."""

    limits: JourneyLimits = field(default_factory=JourneyLimits)
    now: int = 0
    commands: list[JourneyCommand] = field(default_factory=list)
    next_wake: int | None = None

    def __post_init__(self) -> None:
        self.machine = Journeys("g0", 1, self.limits)

    def tell(self, *facts: JourneyFact, after_ns: int = 0) -> list[JourneyCommand]:
        self.now += after_ns
        stepped = self.machine.step(self.now, facts)
        self.next_wake = stepped.next_wake
        self.commands += stepped.commands
        return list(stepped.commands)

    def accept(self, max_tokens: int = 4, n: int = 1, deadline_ns: int | None = None) -> Place:
        sampling = SamplingParams(max_tokens=max_tokens, seed=7)
        (place,) = self.tell(
            Accepted(
                "r", "t", "m", b"card", (1, 2, 3), (), b"salt", sampling, n, 0, 0, deadline_ns, True
            )
        )
        assert isinstance(place, Place)
        return place

    def place(self, place: Place, decode: WorkerRef, prefill: WorkerRef | None = None) -> list[str]:
        """Answer a placement; the ids of the sequences that it started, in order."""
        query = place.query
        started = self.tell(
            Placed("r", query.choice, query.attempt, Placement(decode, prefill), DECISION)
        )
        assert all(isinstance(command, StartPrefill | StartDecode) for command in started)
        return [
            command.spec.sequence_id
            for command in started
            if isinstance(command, StartPrefill | StartDecode)
        ]

    def report(
        self,
        worker: WorkerRef,
        sequence_id: str,
        first_index: int,
        tokens: tuple[int, ...],
        finish: Finish | None = None,
        figures: SequenceFigures | None = None,
    ) -> list[JourneyCommand]:
        outputs = tuple(OutputToken(token) for token in tokens)
        report = SequenceReport(sequence_id, first_index, outputs, finish, "", figures)
        return self.tell(Reported(worker.worker_id, (report,)))

    def delivered(self, choice: int = 0) -> list[int]:
        return [
            token.token_id
            for command in self.commands
            if isinstance(command, Deliver) and command.choice == choice
            for token in command.tokens
        ]

    def end(self) -> EndRequest:
        (end,) = [command for command in self.commands if isinstance(command, EndRequest)]
        return end


def only_place(commands: list[JourneyCommand]) -> Place:
    (place,) = [command for command in commands if isinstance(command, Place)]
    return place
