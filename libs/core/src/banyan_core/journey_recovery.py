"""What a request does when a worker refuses it or is lost: back to the queue, or it gives up.

A full worker's refusal is no failure; all else counts as one, until the next new token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from banyan_core.choice import Choice, Leg, Verb
from banyan_core.journey_legs import Legs
from banyan_core.journey_messages import CancelSequence, JourneyCommand
from banyan_core.queue import Queue
from banyan_core.types import NS_PER_MS, Refusal, ShedReason
from banyan_core.waiting import FIRST_BACKOFF_NS, LONGEST_BACKOFF_NS, Waiting

AVOID_LOST_NS = 250 * NS_PER_MS

GivenUp: TypeAlias = tuple[ShedReason, str] | None
"""Why the request is to be shed, with a message; None when it goes on."""


@dataclass(slots=True)
class Recovery:
    """Of one request. `max_failures` is of one choice, without a new token between them."""

    max_failures: int
    queue: Queue
    waiting: Waiting
    legs: Legs
    emit: Callable[[JourneyCommand], None]

    def refused(
        self, now: int, choice: Choice, sequence_id: str, refusal: Refusal, unreachable: bool
    ) -> GivenUp:
        """Nothing ran: place again, and only decode again if only decode said no.

        A full worker is no failure, and the choice keeps its place in the queue.
        """
        full = refusal.retry_after_ns > 0 and not unreachable
        leg = choice.leg(sequence_id)
        if full and leg is not None:
            worker_id = leg.worker.worker_id
            self.queue.gate.worker_full(now, worker_id, refusal.retry_after_ns)
        if leg is None or not leg.running:
            return None
        leg.running, leg.leased, leg.end = False, False, f"refused: {refusal.reason}"
        reason = choice.refused = f"{leg.worker.worker_id} refused: {refusal.reason}"
        if full:
            self._send_back(now, choice, reason, leg.verb)
            return None
        self.avoid(now, choice, leg)
        if unreachable:
            self.emit(CancelSequence(leg.worker.worker_id, sequence_id))
        return self._again(now, choice, reason, leg.verb)

    def avoid(self, now: int, choice: Choice, leg: Leg) -> None:
        choice.avoid[leg.worker.worker_id] = now + AVOID_LOST_NS

    def lost(self, now: int, choice: Choice, leg: Leg, reason: str) -> GivenUp:
        """A leg that ran was cancelled as gone or useless."""
        if leg.verb is Verb.PREFILL and choice.live(Verb.DECODE) is not None:
            # Decode finds that the pull broke, computes the prompt itself and goes on.
            return None
        return self._again(now, choice, reason, leg.verb)

    def _again(self, now: int, choice: Choice, reason: str, gone: Verb) -> GivenUp:
        choice.num_failures += 1
        if choice.num_failures > self.max_failures:
            message = f"given up after {choice.num_failures} tries: {reason}"
            return ShedReason.TOO_MANY_LOSSES, message
        not_before_ns = 0
        if choice.num_failures > 2:
            backoff_ns = FIRST_BACKOFF_NS << min(choice.num_failures, 6)
            not_before_ns = now + min(backoff_ns, LONGEST_BACKOFF_NS)
        self._send_back(now, choice, reason, gone, retry=True, not_before_ns=not_before_ns)
        return None

    def _send_back(
        self,
        now: int,
        choice: Choice,
        reason: str,
        gone: Verb,
        *,
        retry: bool = False,
        not_before_ns: int = 0,
    ) -> None:
        """To the queue, with the prefill that runs or is held if only decode is gone."""
        choice.early.clear()
        choice.pending_finish = choice.ends_at = None
        keeps = gone is Verb.DECODE and len(choice.tokens) <= 1
        if not keeps or choice.kept_prefill() is None:
            self.legs.abandon(choice, reason)
        self.waiting.join(
            now, choice, retry=retry or choice.ticket.retry, not_before_ns=not_before_ns
        )
