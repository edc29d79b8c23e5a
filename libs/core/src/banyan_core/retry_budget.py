"""One bound on the retries of a whole gateway, so that a sick mesh is not hit by a storm of them.

A token bucket: every request that is placed for the first time adds a share of a retry, time adds
a few per second, and the bucket holds enough for the streams of a large worker that dies at once.
Only what follows a loss is a retry; a full worker's refusal is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.types import NS_PER_S

_RETRY = NS_PER_S
"""One retry in the bucket's unit: so `per_s` times nanoseconds needs no division."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """`percent` of requests, and `per_s` beside; at most `burst` retries are saved up."""

    percent: int = 20
    per_s: int = 10
    burst: int = 256


class RetryBudget:
    """Whole numbers only: equal in every replay."""

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self._balance = limits.burst * _RETRY
        self._since = 0

    def num_left(self, now: int) -> int:
        self._pass_time(now)
        return self._balance // _RETRY

    def request_placed(self, now: int) -> None:
        self._pass_time(now)
        self._put(self._limits.percent * _RETRY // 100)

    def take(self, now: int) -> bool:
        """Pay for one retry; False when there is nothing to pay with."""
        if self.num_left(now) < 1:
            return False
        self._balance -= _RETRY
        return True

    def next_ns(self, now: int) -> int:
        """When there will be one by time alone; only to be asked when there is none."""
        self._pass_time(now)
        return now + max(1, -(-(_RETRY - self._balance) // self._limits.per_s))

    def _pass_time(self, now: int) -> None:
        self._put((now - self._since) * self._limits.per_s)
        self._since = now

    def _put(self, amount: int) -> None:
        self._balance = min(self._limits.burst * _RETRY, self._balance + amount)
