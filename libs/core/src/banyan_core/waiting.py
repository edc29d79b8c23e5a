"""A request's choices on their way to workers: through the queue, and a router's answer.

The queue knows who goes next; this knows what a journey must do about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from banyan_core.choice import Choice, Phase
from banyan_core.journey_asks import place_query
from banyan_core.journey_books import Books
from banyan_core.journey_messages import Accepted, JourneyCommand, NotPlaced, Place
from banyan_core.ledger import Stage
from banyan_core.placement import Decision
from banyan_core.policies.filters import LASTING, TOO_LARGE
from banyan_core.queue import Queue
from banyan_core.types import NS_PER_MS, NS_PER_S, ShedReason
from banyan_core.waiting_line import Ticket

FIRST_BACKOFF_NS = 20 * NS_PER_MS
LONGEST_BACKOFF_NS = NS_PER_S


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one request, for all its choices. `timeout_ns` is its patience."""

    accepted: Accepted
    timeout_ns: int
    queue: Queue
    books: Books
    emit: Callable[[JourneyCommand], None]

    def ticket(self, choice: int, number: int) -> Ticket:
        """`number` is that of the request's arrival."""
        accepted = self.accepted
        due_ns = accepted.received_ns + self.queue.max_wait_ns
        if accepted.deadline_ns is not None:
            due_ns = min(due_ns, accepted.deadline_ns)
        num_tokens = len(accepted.prompt_token_ids)
        return Ticket(accepted.request_id, choice, accepted.priority, due_ns, number, num_tokens)

    def join(
        self, now: int, choice: Choice, *, retry: bool = False, not_before_ns: int = 0
    ) -> None:
        """Wait for a turn; in a mesh with room it comes in this very step."""
        choice.phase = Phase.WAITING
        if choice.waiting_since is None:
            choice.waiting_since = now
        started = self.books.ttft_ns is not None
        choice.ticket = replace(choice.ticket, started=started, retry=retry)
        self.books.move(choice, Stage.QUEUE, now)
        self.queue.join(choice.ticket, not_before_ns)

    def ask(self, now: int, choice: Choice) -> None:
        """Its turn: what it costs is paid, so a refusal brings it back for nothing."""
        choice.phase = Phase.PLACING
        choice.ticket = replace(choice.ticket, retry=False)
        self.books.move(choice, Stage.PLACE, now)
        full_workers = self.queue.gate.full_workers(now)
        self.emit(Place(place_query(self.accepted, choice, now, full_workers)))

    def not_placed(self, now: int, choice: Choice, fact: NotPlaced) -> None:
        """Back to its place; the gate shuts for all, unless only this choice finds no worker."""
        if fact.decision is not None:
            self.books.keep(fact.decision)
        choice.refused = fact.refusal.reason
        retry_ns = fact.refusal.retry_after_ns
        if choice.avoided(now) or _never_fits(fact.decision):
            aside_ns = min(max(retry_ns, FIRST_BACKOFF_NS), LONGEST_BACKOFF_NS)
            self.join(now, choice, not_before_ns=now + aside_ns)
        else:
            self.queue.gate.no_room(now, choice.ticket.name, retry_ns)
            self.join(now, choice)

    def taken(self, choice: Choice) -> None:
        """Its workers promised, or one of them serves it already: it waits no more."""
        if choice.phase is Phase.RUNNING and choice.waiting_since is not None:
            choice.waiting_since = None
            self.queue.taken(choice.ticket)

    def until(self, choice: Choice) -> int | None:
        """The end of its patience; None when it does not wait."""
        if choice.phase is not Phase.WAITING or choice.waiting_since is None:
            return None
        return choice.waiting_since + self.timeout_ns

    def why_so_long(self, choice: Choice) -> str:
        why = f": {choice.refused}" if choice.refused else ""
        return f"no worker took it within {self.timeout_ns / NS_PER_S:g} s{why}"

    def latest_start_ns(self) -> int | None:
        """Started later it would probably miss its deadline; None when it has none."""
        if self.accepted.deadline_ns is None:
            return None
        served_ns = self.queue.service_time.expected_ns(self.accepted.sampling.max_tokens)
        return self.accepted.deadline_ns - served_ns

    def too_late(self, now: int, choice: Choice) -> tuple[ShedReason, str] | None:
        """Why one that had to wait and whose client has nothing yet is not worth a turn now: its
        deadline cannot be kept, or it waited longer than overload should let it."""
        since = choice.waiting_since
        if since is None or since == now or self.books.ttft_ns is not None:
            return None
        latest_ns = self.latest_start_ns()
        if latest_ns is not None and now > latest_ns:
            return ShedReason.DEADLINE, "too late to be answered before its deadline"
        if not choice.num_failures and self.queue.overdue(now, choice.ticket, since):
            waited = f"{(now - since) / NS_PER_S:.1f} s"
            return ShedReason.QUEUE_TIMEOUT, f"waited {waited}: more came than can be served"
        return None

    def note(self, choice: Choice) -> None:
        """If it waits: say behind how many, among the decisions."""
        place = self.queue.place_in_line(choice.ticket)
        if place is not None:
            num_ahead, wait_ns = place
            expected = "not known" if wait_ns is None else f"{wait_ns / NS_PER_S:.1f} s"
            reason = f"queued: {num_ahead} ahead, expected wait {expected}"
            self.books.keep(Decision("queue", choice.ticket.number, reason=reason))


def fits_nowhere(decision: Decision | None) -> str:
    """Why no worker can ever take it; empty unless each of its model is too small for it.

    One that is not live, drains or was excluded may be large enough: that is worth waiting for.
    """
    if decision is None or not _never_fits(decision):
        return ""
    small = (c for c in decision.candidates if c.filtered.startswith(TOO_LARGE))
    return next((f"{c.worker_id}: {c.filtered}" for c in small), "")


def _never_fits(decision: Decision | None) -> bool:
    """No worker is just busy: each is too small for it, or serves another model."""
    candidates = () if decision is None else decision.candidates
    return bool(candidates) and all(c.filtered.startswith(LASTING) for c in candidates)
