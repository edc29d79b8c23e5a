"""The leases of prefills whose blocks wait to be pulled: the table, its pump, and their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from banyan_core.leases import Expired, Grant, LeaseFact, LeaseTable, Released, Renew
from banyan_runtime.clock import Clock
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump


class LeaseKeeper:
    """A lease is asked for at admission and starts when the prefill is complete.

    `on_end` is called with each lease that ends here, released or expired.
    """

    def __init__(self, clock: Clock, longest_ns: int, on_end: Callable[[str], None]) -> None:
        self._table = LeaseTable()
        self._pump = Pump[LeaseFact, Expired](self._table, clock, self._expired)
        self._longest_ns = longest_ns
        self._on_end = on_end
        self._ttl_ns: dict[str, int] = {}
        self._active: dict[str, None] = {}
        self.num_expired = 0

    def __len__(self) -> int:
        return len(self._active)

    def start(self, tasks: Tasks) -> None:
        tasks.spawn("leases", self._pump.run())

    def ask(self, lease_id: str, ttl_ns: int) -> None:
        self._ttl_ns[lease_id] = min(max(ttl_ns, 1), self._longest_ns)

    def grant(self, lease_id: str) -> None:
        if lease_id in self._ttl_ns:
            self._active[lease_id] = None
            self._pump.feed(Grant(lease_id, self._ttl_ns[lease_id]))

    def renew(self, lease_id: str) -> None:
        if lease_id in self._active:
            self._pump.feed(Renew(lease_id, self._ttl_ns[lease_id]))

    def release(self, lease_ids: Sequence[str]) -> int:
        """End these. Returns how many were active."""
        active = [lease_id for lease_id in lease_ids if lease_id in self._active]
        self._pump.feed(*(Released(lease_id) for lease_id in active))
        for lease_id in active:
            self._end(lease_id)
        return len(active)

    def forget(self, lease_id: str) -> None:
        """Its prefill ended without blocks to hold."""
        self._ttl_ns.pop(lease_id, None)

    def _expired(self, command: Expired) -> None:
        if command.lease_id in self._active:
            self.num_expired += 1
            self._end(command.lease_id)

    def _end(self, lease_id: str) -> None:
        self._active.pop(lease_id, None)
        self._ttl_ns.pop(lease_id, None)
        self._on_end(lease_id)
