"""A gateway's journeys and queue, played against by whatever happens, and what must hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from banyan_core.journey_limits import JourneyLimits
from banyan_core.journey_messages import (
    Accepted,
    Admitted,
    ClientGone,
    EndRequest,
    JourneyFact,
    NotPlaced,
    Place,
    Placed,
    Refused,
    Reported,
    StartDecode,
    StartPrefill,
    WorkerLost,
)
from banyan_core.journeys import Journeys
from banyan_core.placement import Candidate, Decision, Placement
from banyan_core.queue import QueueLimits
from banyan_core.retry_budget import RetryLimits
from banyan_core.types import (
    NS_PER_MS,
    NS_PER_S,
    Finish,
    OutputToken,
    Refusal,
    Role,
    SamplingParams,
    SequenceReport,
    WorkerRef,
)

WORKERS = tuple(WorkerRef(f"d{n}", 1, f"d{n}:1", Role.DECODE) for n in range(3))
RETRY = RetryLimits(percent=10, per_s=5, burst=6)
BOUNDS = QueueLimits(max_waiting=6, max_wait_ns=NS_PER_S, max_asking=4, retry=RETRY)
NUM_TOKENS = 3


@dataclass
class Game:
    """Routers, workers and clients that act at random; the machine must keep its word."""

    rng: random.Random
    now: int = 0
    num_accepted: int = 0
    in_order: bool = False  # then there are no deadlines
    num_retries: int = 0
    num_first: int = 0
    capacity: int = 4
    asked: list[Place] = field(default_factory=list)
    starting: dict[str, tuple[StartDecode | StartPrefill, WorkerRef]] = field(default_factory=dict)
    running: dict[str, tuple[StartDecode | StartPrefill, WorkerRef]] = field(default_factory=dict)
    num_done: dict[str, int] = field(default_factory=dict)  # output tokens, by sequence
    priorities: list[int] = field(default_factory=list)  # by arrival
    ends: dict[str, EndRequest] = field(default_factory=dict)
    num_lost: dict[str, int] = field(default_factory=dict)
    next_wake: int | None = None

    def __post_init__(self) -> None:
        limits = JourneyLimits(queue_timeout_ns=10 * NS_PER_S, queue=BOUNDS)
        self.machine = Journeys("g0", 1, limits)
        self.placed_once: dict[str, bool] = {}

    def tell(self, *facts: JourneyFact) -> None:
        stepped = self.machine.step(self.now, facts)
        self.next_wake = stepped.next_wake
        assert self.next_wake is None or self.next_wake >= self.now
        for command in stepped.commands:
            if isinstance(command, Place):
                self.asked.append(command)
                self._count(command)
            elif isinstance(command, StartDecode | StartPrefill):
                self.starting[command.spec.sequence_id] = (command, command.worker)
            elif isinstance(command, EndRequest):
                request_id = command.record.request_id
                assert request_id not in self.ends, "it ended twice"
                self.ends[request_id] = command
        self._check()
        if self.in_order:
            self._check_order(
                [c.query.request_id for c in stepped.commands if isinstance(c, Place)]
            )

    def _check_order(self, asked: list[str]) -> None:
        """Whoever asked now: nobody of its class or a better one came earlier and still waits."""
        waiting = [self._rank(r) for r in self._open() if self.machine.place_in_line(r)]
        assert all(self._rank(request_id) < rank for request_id in asked for rank in waiting)

    def _rank(self, request_id: str) -> tuple[int, int]:
        number = int(request_id[1:])
        return self.priorities[number - 1], number

    def _count(self, command: Place) -> None:
        """A place that follows a loss must have been paid for."""
        request_id = command.query.request_id
        if self.num_lost.pop(request_id, 0):
            self.num_retries += 1
        elif request_id not in self.placed_once:
            self.num_first += 1
            self.placed_once[request_id] = True
        earned = RETRY.burst + self.num_first * RETRY.percent / 100
        assert self.num_retries <= earned + self.now * RETRY.per_s / NS_PER_S + 1e-6

    def _check(self) -> None:
        waiting = [r for r in self._open() if self.machine.place_in_line(r) is not None]
        fresh = [r for r in waiting if not self._journey_tokens(r)]
        # Who was placed and came back without a token keeps its place, though it is taken since.
        num_may_return = BOUNDS.max_asking + self.capacity
        assert len(fresh) <= BOUNDS.max_waiting + num_may_return
        assert self.machine.num_open == self.num_accepted - len(self.ends)

    def _journey_tokens(self, request_id: str) -> int:
        journey = self.machine.journey(request_id)
        assert journey is not None
        return len(journey.choices[0].tokens)

    def _open(self) -> list[str]:
        ids = (f"r{number}" for number in range(1, self.num_accepted + 1))
        return [request_id for request_id in ids if request_id not in self.ends]

    # ------------------------------------------------------------ moves

    def arrive(self) -> None:
        self.num_accepted += 1
        hurried = not self.in_order and self.rng.random() < 0.3
        self.priorities.append(self.rng.choice((-1, 0, 0, 1)))
        deadline = self.now + self.rng.randint(1, 5) * NS_PER_S if hurried else None
        self.tell(
            Accepted(
                request_id=f"r{self.num_accepted}",
                tenant="t",
                model="m",
                card_digest=b"card",
                prompt_token_ids=(1, 2, 3),
                block_hashes=(),
                salt=b"",
                sampling=SamplingParams(max_tokens=NUM_TOKENS),
                num_choices=1,
                priority=self.priorities[-1],
                received_ns=self.now,
                deadline_ns=deadline,
                stream=True,
            )
        )

    def answer_router(self) -> None:
        if not self.asked:
            return
        query = self.asked.pop(0).query
        workers = [w for w in WORKERS if w.worker_id not in query.excluded]
        reply = (query.request_id, query.choice, query.attempt)
        if workers:
            worker = self.rng.choice(workers)
            self.tell(Placed(*reply, Placement(worker), Decision("test", 1)))
            return
        candidates = tuple(
            Candidate(w.worker_id, w.role, "excluded by the gateway") for w in WORKERS
        )
        decision = Decision("test", 1, candidates)
        self.tell(NotPlaced(*reply, Refusal("none", 200 * NS_PER_MS), decision))

    def answer_worker(self) -> None:
        if not self.starting:
            return
        sequence_id = next(iter(self.starting))
        command, worker = self.starting.pop(sequence_id)
        if len(self.running) >= self.capacity:
            self.tell(Refused(worker.worker_id, sequence_id, Refusal("full", 30 * NS_PER_MS)))
        else:
            self.running[sequence_id] = (command, worker)
            self.tell(Admitted(worker.worker_id, sequence_id))

    def serve(self) -> None:
        """One more token for somebody."""
        if not self.running:
            return
        sequence_id = self.rng.choice(list(self.running))
        command, worker = self.running[sequence_id]
        index = self.num_done.get(sequence_id, len(command.spec.output_token_ids))
        self.num_done[sequence_id] = index + 1
        finish = Finish.LENGTH if index + 1 == NUM_TOKENS else None
        if finish is not None:
            del self.running[sequence_id]
        report = SequenceReport(sequence_id, index, (OutputToken(index),), finish)
        self.tell(Reported(worker.worker_id, (report,)))

    def kill(self) -> None:
        worker = self.rng.choice(WORKERS)
        for group in (self.starting, self.running):
            for sequence_id in [s for s, (_, on) in group.items() if on == worker]:
                del group[sequence_id]
                request_id = sequence_id.split("/")[0]
                if request_id not in self.ends:
                    self.num_lost[request_id] = 1
        self.tell(WorkerLost(worker.worker_id, worker.epoch, "killed"))

    def leave(self) -> None:
        candidates = self._open()
        if candidates:
            self.tell(ClientGone(self.rng.choice(candidates), "left"))

    def wait(self) -> None:
        self.now += self.rng.choice((1, 10, 50, 300)) * NS_PER_MS
        self.tell()

    def finish(self) -> None:
        """Everybody acts until all have ended."""
        for _ in range(1000):
            if len(self.ends) == self.num_accepted:
                return
            self.answer_router()
            self.answer_worker()
            self.serve()
            self.wait()
        raise AssertionError(f"never ended: {self._open()}")


MOVES = (
    *("arrive",) * 5,
    *("answer_router",) * 6,
    *("answer_worker",) * 6,
    *("serve",) * 4,
    *("wait",) * 3,
    "kill",
    "leave",
)
