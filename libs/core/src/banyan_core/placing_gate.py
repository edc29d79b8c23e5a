"""How many may ask for a worker at once, so that a full mesh is probed and not stormed.

Everyone may ask while the mesh takes what it is given, up to `max_asking` at a time. When the
routers know no worker with room, one at a time asks until one is taken; each that is taken widens
the gate by one, as TCP's slow start does. While the gate is shut, the end of one of our own
sequences lets one through: it left a place behind. A worker that refused is not asked again, by
any request, before its time.
"""

from __future__ import annotations

from banyan_core.types import NS_PER_MS, NS_PER_S
from banyan_core.waiting_line import Name

ASKING_NS = NS_PER_S
"""After this time an ask without an answer no longer keeps others from asking."""
SHORTEST_SHUT_NS = 20 * NS_PER_MS
LONGEST_SHUT_NS = NS_PER_S
MAX_DOUBLINGS = 3


class PlacingGate:
    """`full` from the first "no worker has room" until nobody waits or asks any more."""

    def __init__(self, max_asking: int) -> None:
        self._max_asking = max_asking
        self._window = max_asking
        self._asking: dict[Name, tuple[int, bool]] = {}  # since when, and while full
        self._shut_until = 0
        self._num_left_places = 0
        self._full_workers: dict[str, int] = {}  # until when
        self._num_refusals: dict[str, int] = {}  # of a worker, in a row
        self.full = False

    def is_open(self, now: int) -> bool:
        if len(self._asking) >= self._window:
            return False
        return now >= self._shut_until or self._num_left_places > 0

    def ask(self, now: int, name: Name) -> None:
        if now < self._shut_until:
            self._num_left_places -= 1
        self._asking[name] = (now, self.full)

    def taken(self, name: Name) -> bool:
        """A worker promised. True when it did so while the mesh was full."""
        asked = self._asking.pop(name, None)
        if asked is None:
            return False
        self._window = min(self._max_asking, self._window + 1)
        return asked[1]

    def dropped(self, name: Name) -> None:
        """It asks no more, for reasons that say nothing about the mesh."""
        self._asking.pop(name, None)

    def no_room(self, now: int, name: Name, retry_after_ns: int) -> None:
        """The routers know no worker with room: shut, until the first full one may be asked."""
        self.dropped(name)
        wanted = min([now + retry_after_ns, *self._full_workers.values()])
        self._shut_until = min(max(wanted, now + SHORTEST_SHUT_NS), now + LONGEST_SHUT_NS)
        self._window = 1
        self.full = True

    def worker_full(self, now: int, worker_id: str, retry_after_ns: int) -> None:
        """Others may have room: fewer ask at a time, and none of them this worker, for a while."""
        num = self._num_refusals.get(worker_id, 0)
        self._num_refusals[worker_id] = min(num + 1, MAX_DOUBLINGS)
        self._full_workers[worker_id] = now + max(retry_after_ns, SHORTEST_SHUT_NS << num)
        self._window = max(1, self._window // 2)

    def left_place(self, worker_id: str) -> None:
        """A sequence of ours ended there."""
        self.worker_free(worker_id)
        if self.full:
            self._num_left_places = min(self._num_left_places + 1, self._max_asking)

    def worker_free(self, worker_id: str) -> None:
        """It took a sequence, or is another life of that worker: ask it like any other."""
        self._full_workers.pop(worker_id, None)
        self._num_refusals.pop(worker_id, None)

    def full_workers(self, now: int) -> tuple[str, ...]:
        """Not to be asked now, in a fixed order."""
        for worker_id in [w for w, until in self._full_workers.items() if until <= now]:
            del self._full_workers[worker_id]
        return tuple(sorted(self._full_workers))

    def pass_time(self, now: int, num_waiting: int) -> None:
        """Forget asks that were never answered; the mesh is full no more once nobody waits."""
        for name, (asked_ns, _) in list(self._asking.items()):
            if asked_ns + ASKING_NS > now:
                break  # in the order of asking
            del self._asking[name]
        if not num_waiting and not self._asking:
            self.full = False
            self._num_left_places = 0

    def next_wake(self, now: int) -> int | None:
        """When the gate may open by time alone, if it is closed."""
        if self._asking and len(self._asking) >= self._window:
            return next(iter(self._asking.values()))[0] + ASKING_NS
        return self._shut_until if self._shut_until > now else None
