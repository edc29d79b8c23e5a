"""Where time comes from. Everything that asks the time is handed a `Clock`.

Waiting is asyncio's business (`asyncio.sleep`, timeouts, timers): under the virtual loop those
run on the same virtual time that its clock shows.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic time in nanoseconds, comparable within this process only."""
        ...

    def unix_ns(self) -> int:
        """Wall time in nanoseconds; for events and logs, never for deadlines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def unix_ns(self) -> int:
        return time.time_ns()
