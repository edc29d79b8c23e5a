"""Percentiles of a stream in bounded memory, mergeable over windows.

Values fall into buckets whose bounds grow by a constant factor, so that a percentile is right to
1 % of its value whatever the distribution (DDSketch: Masson, Rim, Lee, VLDB 2019). Two sketches
add up without loss, which averages of percentiles never do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

RELATIVE_ERROR = 0.01
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
_MIN_VALUE = 1_000  # ns; anything shorter counts as this
_MAX_VALUE = 86_400_000_000_000  # a day; bounds the number of buckets


@dataclass(slots=True)
class Sketch:
    """Counts of durations in nanoseconds."""

    num_values: int = 0
    total: int = 0
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, value: int) -> None:
        """Count one duration (ns)."""
        clipped = min(max(value, _MIN_VALUE), _MAX_VALUE)
        index = math.ceil(math.log(clipped) / _LOG_GROWTH)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.num_values += 1
        self.total += value

    def merge(self, other: Sketch) -> None:
        """Add everything that `other` counted."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.num_values += other.num_values
        self.total += other.total

    def percentile(self, share: float) -> float | None:
        """The smallest value that at least `share` (0 to 1) of all values do not exceed.

        In nanoseconds, right to 1 %; None when nothing was counted.
        """
        if self.num_values == 0:
            return None
        rank = max(1, math.ceil(share * self.num_values))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return 2 * _GROWTH**index / (_GROWTH + 1)
        raise AssertionError("the counts add up to num_values")
