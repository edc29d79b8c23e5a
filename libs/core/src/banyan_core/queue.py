"""The gateway's queue: where requests wait for a worker, who goes next, and who is shed.

    join -> line (who) + gate (how many ask) + budget (what retries may cost) -> next_turn
    judge <- drain rate (how long it would take)

Everyone passes through it. When the mesh has room that costs nothing: the turn comes in the same
step. What is shed is told so on arrival, from the measured rate, not after it has waited.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.drain_rate import DrainRate
from banyan_core.hashing import derive
from banyan_core.placing_gate import PlacingGate
from banyan_core.retry_budget import RetryBudget, RetryLimits
from banyan_core.service_time import ServiceTime
from banyan_core.types import NS_PER_S, ShedReason
from banyan_core.waiting_line import Ticket, WaitingLine

LONGEST_RETRY_AFTER_S = 60
UNKNOWN_RETRY_AFTER_S = 2
SPREAD_PERCENT = 50


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`max_waiting` requests and the tokens of their prompts bound memory. `max_wait_ns` bounds
    how long the last in line is expected to wait: a quarter of the usual target for the first
    token, since a worker may let it wait as long again, and estimates err.
    """

    max_waiting: int = 1000
    max_waiting_tokens: int = 4_000_000
    max_wait_ns: int = NS_PER_S // 2
    max_asking: int = 64
    retry: RetryLimits = field(default_factory=RetryLimits)


@dataclass(frozen=True, slots=True)
class Shed:
    """Who is turned away, with the reason for programs and the one for people."""

    ticket: Ticket
    reason: ShedReason
    message: str


class Queue:
    """Tickets are a request's choices; their names are unique."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._line = WaitingLine()
        self._drain = DrainRate()
        self.gate = PlacingGate(limits.max_asking)
        self.budget = RetryBudget(limits.retry)
        self.service_time = ServiceTime()

    @property
    def max_wait_ns(self) -> int:
        return self._limits.max_wait_ns

    def pass_time(self, now: int) -> None:
        """To be called before anything else at a new instant."""
        self._drain.pass_time(now, self.gate.full)
        self._line.come_back(now)
        self.gate.pass_time(now, len(self._line))

    # ------------------------------------------------------------ waiting

    def join(self, ticket: Ticket, not_before_ns: int = 0) -> None:
        """Wait for a turn, or wait again."""
        self.gate.dropped(ticket.name)
        self._line.add(ticket, not_before_ns)

    def leave(self, ticket: Ticket) -> None:
        self.gate.dropped(ticket.name)
        self._line.remove(ticket.name)

    def next_turn(self, now: int) -> Ticket | None:
        """Who asks for a worker now; None when nobody waits or may."""
        while self.gate.is_open(now):
            ticket = self._line.best()
            if ticket is None:
                return None
            if ticket.retry and not self.budget.take(now):
                self._line.add(ticket, self.budget.next_ns(now))
                continue
            if not ticket.retry and not ticket.started:
                self.budget.request_placed(now)
            self._line.remove(ticket.name)
            self.gate.ask(now, ticket.name)
            return ticket
        return None

    def taken(self, ticket: Ticket) -> None:
        """A worker has promised to serve it, or does so already."""
        if self.gate.taken(ticket.name):
            self._drain.took_one(ticket.priority)

    def next_wake(self, now: int) -> int | None:
        wakes = [self._line.next_return_ns()]
        if self._line.best() is not None:
            wakes.append(self.gate.next_wake(now))
        return min((wake for wake in wakes if wake is not None), default=None)

    # ------------------------------------------------------------ judging

    def judge(self, now: int, ticket: Ticket, latest_start_ns: int | None) -> Shed | None:
        """Who must go if this fresh request joins: it, somebody worse, or nobody.

        `latest_start_ns`: started later, it would miss its deadline.
        """
        num_ahead = self._line.num_before(ticket.key)
        if not num_ahead and self.gate.is_open(now):
            return None
        wait_ns = self._drain.wait_ns(num_ahead + 1, ticket.priority)
        if wait_ns is not None and latest_start_ns is not None and now + wait_ns > latest_start_ns:
            seconds = f"{wait_ns / NS_PER_S:.1f} s"
            message = f"{num_ahead} wait before it, {seconds}: too long for its deadline"
            return Shed(ticket, ShedReason.DEADLINE, message)
        worst = self._line.worst_fresh()
        last = ticket if worst is None else max(ticket, worst, key=lambda waits: waits.priority)
        why_full = self._why_full(ticket, last.priority)
        if not why_full:
            return None
        if last is not ticket:
            return Shed(last, ShedReason.PUSHED_OUT, f"a better class came and {why_full}")
        known = self._drain.wait_ns(1, ticket.priority) is not None
        reason = ShedReason.QUEUE_FULL if known else ShedReason.NO_CAPACITY
        return Shed(ticket, reason, f"the queue is full: {why_full}")

    def judge_unread(self, now: int, priority: int) -> Shed | None:
        """Who comes now in this class must go, whatever else it is: with the shortest prompt and
        the earliest due time it would have to. None: it must be read, and judged when it joins.

        Only looks; nothing changes here.
        """
        shed = self.judge(now, Ticket("", 0, priority, 0, 0, 1), None)
        return shed if shed is not None and not shed.ticket.request_id else None

    def _why_full(self, ticket: Ticket, last_priority: int) -> str:
        limits, line = self._limits, self._line
        if line.num_fresh >= limits.max_waiting:
            return f"{line.num_fresh} requests wait"
        if line.num_fresh_tokens + ticket.num_tokens > limits.max_waiting_tokens:
            return f"{line.num_fresh_tokens} prompt tokens wait" if line.num_fresh else ""
        wait_ns = self._drain.wait_ns(len(line) + 1, last_priority)
        if line.num_fresh and wait_ns is not None and wait_ns > limits.max_wait_ns:
            return f"{len(line)} requests wait, {wait_ns / NS_PER_S:.1f} s"
        return ""

    def overdue(self, now: int, ticket: Ticket, waiting_since_ns: int) -> bool:
        """It waits twice as long as anybody should: it came before the rate was measured, and
        would not be let in now. Never so because of an outage."""
        served_since = self._drain.served_since()
        if served_since is None or waiting_since_ns < served_since or not self.gate.full:
            return False
        measured = self._drain.wait_ns(1, ticket.priority) is not None
        return measured and now - waiting_since_ns > 2 * self._limits.max_wait_ns

    def place_in_line(self, ticket: Ticket) -> tuple[int, int | None] | None:
        """How many go before it and how long it may wait, if that is known; None: no waiting."""
        key = self._line.key_of(ticket.name)
        if key is None:
            return None
        num_ahead = self._line.num_before(key)
        return num_ahead, self._drain.wait_ns(num_ahead + 1, ticket.priority)

    def expected_wait_ns(self) -> int | None:
        """Of a request that would stand last; None when it is not known."""
        return self._wait_of_last_ns() if self.gate.full else 0

    def _wait_of_last_ns(self) -> int | None:
        worst = self._line.worst_fresh()
        return self._drain.wait_ns(len(self._line) + 1, 0 if worst is None else worst.priority)

    def retry_after_ns(self, request_id: str) -> int:
        """When those who wait now should have been taken, in whole seconds.

        Spread by request, so that those who were shed together do not come back together.
        """
        wait_ns = self._wait_of_last_ns()
        if wait_ns is None:
            wait_ns = UNKNOWN_RETRY_AFTER_S * NS_PER_S
        spread = derive(0, "retry-after", request_id) % (SPREAD_PERCENT + 1)
        seconds = -(-wait_ns * (100 + spread) // (100 * NS_PER_S))
        return min(max(1, seconds), LONGEST_RETRY_AFTER_S) * NS_PER_S
