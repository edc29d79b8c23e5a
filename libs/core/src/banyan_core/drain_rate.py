"""How fast a full mesh takes requests, measured: what waiting times are estimated from.

Only time in which the mesh was full counts. A calm mesh takes what comes, which says nothing of
what it could take.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from banyan_core.types import NS_PER_MS, NS_PER_S

SLICE_NS = 250 * NS_PER_MS
WINDOW_NS = 5 * NS_PER_S
LONGEST_WINDOW_NS = 60 * NS_PER_S
OUTAGE_NS = NS_PER_S
MIN_TAKEN = 4
"""No estimate from fewer; a slow mesh's window grows until it holds four times as many."""


@dataclass(slots=True)
class _Slice:
    full_ns: int = 0
    num_taken: int = 0
    by_priority: dict[int, int] = field(default_factory=dict)


class DrainRate:
    """A sliding window over full time, in whole numbers: equal in every replay."""

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque([_Slice()])
        self._full_ns = 0
        self._num_taken = 0
        self._taken: dict[int, int] = {}
        self._since = 0
        self._idle_ns = 0  # full time since one was taken
        self._served_since = 0

    def pass_time(self, now: int, full: bool) -> None:
        """The time since the last call was full time, or it was not."""
        left, self._since = now - self._since, now
        self._idle_ns = self._idle_ns + left if full else 0
        while full and left > 0:
            if self._slices[-1].full_ns >= SLICE_NS:
                self._slices.append(_Slice())
                self._forget()
            piece = min(left, SLICE_NS - self._slices[-1].full_ns)
            if self._full_ns >= LONGEST_WINDOW_NS and not self._num_taken:
                return  # an outage, however long, is no measurement
            self._slices[-1].full_ns += piece
            self._full_ns += piece
            left -= piece

    def took_one(self, priority: int) -> None:
        if self._idle_ns > OUTAGE_NS:
            self._served_since = self._since
        self._idle_ns = 0
        if not self._num_taken and self._full_ns > SLICE_NS:
            self._slices = deque([_Slice()])  # nothing was taken for a while: an outage ended
            self._full_ns = 0
        newest = self._slices[-1]
        newest.num_taken += 1
        newest.by_priority[priority] = newest.by_priority.get(priority, 0) + 1
        self._num_taken += 1
        self._taken[priority] = self._taken.get(priority, 0) + 1

    def served_since(self) -> int | None:
        """The end of the last outage; None in one: a full mesh takes nobody for `OUTAGE_NS`."""
        return self._served_since if self._idle_ns <= OUTAGE_NS else None

    def wait_ns(self, num: int, priority: int) -> int | None:
        """How long until so many of this class and better ones are taken, if better ones go on
        coming and going first as they do now; None when that is not known."""
        if self._num_taken < MIN_TAKEN or self._full_ns < SLICE_NS:
            return None
        num_better = sum(number for other, number in self._taken.items() if other < priority)
        return num * self._full_ns // max(1, self._num_taken - num_better)

    def _forget(self) -> None:
        """Drop old slices, while what is left is long and full enough to say something."""
        while len(self._slices) > 1:
            oldest = self._slices[0]
            long_enough = self._full_ns - oldest.full_ns >= WINDOW_NS
            enough = self._num_taken - oldest.num_taken >= 4 * MIN_TAKEN
            if not (long_enough and enough) and self._full_ns < LONGEST_WINDOW_NS:
                return
            self._slices.popleft()
            self._full_ns -= oldest.full_ns
            self._num_taken -= oldest.num_taken
            for priority, number in oldest.by_priority.items():
                self._taken[priority] -= number
                if not self._taken[priority]:
                    del self._taken[priority]
