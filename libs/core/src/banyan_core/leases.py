"""Leases on the clock of whoever holds the leased thing: granted, renewed, released or expired.

A lease that nobody ends would keep its blocks for ever, because the one that should end it may
have died. So each has an end of its own, and only the holder's monotonic clock decides about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from banyan_core.machine import Stepped


@dataclass(frozen=True, slots=True)
class Grant:
    """Start a lease of `ttl_ns` from now, or start it anew."""

    lease_id: str
    ttl_ns: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Let it last at least `ttl_ns` from now. Ignored when it has ended."""

    lease_id: str
    ttl_ns: int


@dataclass(frozen=True, slots=True)
class Released:
    """It is over before its time. Ignored when it has ended."""

    lease_id: str


LeaseFact = Grant | Renew | Released


@dataclass(frozen=True, slots=True)
class Expired:
    """Its time is over: take back what was leased."""

    lease_id: str


class LeaseTable:
    """A `Machine[LeaseFact, Expired]`."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def holds(self, lease_id: str) -> bool:
        return lease_id in self._ends

    def step(self, now: int, facts: Sequence[LeaseFact]) -> Stepped[Expired]:
        for fact in facts:
            match fact:
                case Grant():
                    self._ends[fact.lease_id] = now + fact.ttl_ns
                case Renew() if fact.lease_id in self._ends:
                    end = max(self._ends[fact.lease_id], now + fact.ttl_ns)
                    self._ends[fact.lease_id] = end
                case Released():
                    self._ends.pop(fact.lease_id, None)
        over = [lease_id for lease_id, end in self._ends.items() if end <= now]
        for lease_id in over:
            del self._ends[lease_id]
        commands = [Expired(lease_id) for lease_id in over]
        return Stepped(commands, min(self._ends.values(), default=None))
