"""Lets go of what workers do for a request: sequences that run, blocks that are held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from banyan_core.choice import Choice, Leg
from banyan_core.journey_messages import CancelSequence, JourneyCommand, ReleaseLease
from banyan_core.queue import Queue


@dataclass(slots=True)
class Legs:
    """Of one request's choices."""

    queue: Queue
    emit: Callable[[JourneyCommand], None]

    def cancel(self, leg: Leg, reason: str) -> None:
        """A leg that is gone or useless; its worker may not know that yet."""
        leg.running, leg.leased, leg.end = False, False, reason
        self.emit(CancelSequence(leg.worker.worker_id, leg.sequence_id))

    def abandon(self, choice: Choice, reason: str) -> None:
        """Stop what still works on this choice, and give back what it holds."""
        for leg in choice.legs:
            if leg.running:
                leg.running, leg.end = False, reason
                self.emit(CancelSequence(leg.worker.worker_id, leg.sequence_id))
        self.release_lease(choice)

    def leave_places(self, choice: Choice) -> None:
        """Cancelling what runs makes room on its workers."""
        self.queue.leave(choice.ticket)
        for leg in choice.legs:
            if leg.running and leg.admitted_ns is not None:
                self.queue.gate.left_place(leg.worker.worker_id)

    def release_lease(self, choice: Choice) -> None:
        for leg in choice.legs:
            if leg.leased:
                leg.leased = False
                self.emit(ReleaseLease(leg.worker, leg.sequence_id))
