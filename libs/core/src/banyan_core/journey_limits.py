"""Bounds of a gateway's journeys, set once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.queue import QueueLimits
from banyan_core.types import NS_PER_S


@dataclass(frozen=True, slots=True)
class JourneyLimits:
    """Bounds of every journey. With `recover` off, a lost worker fails its requests.

    `queue_timeout_ns` is a request's patience through an outage; under mere overload the queue
    turns it away on arrival, or at its turn at the latest.
    """

    lease_ns: int = 30 * NS_PER_S
    queue_timeout_ns: int = 30 * NS_PER_S
    max_failures: int = 16  # of one choice, without a new token between them
    recover: bool = True
    queue: QueueLimits = field(default_factory=QueueLimits)
