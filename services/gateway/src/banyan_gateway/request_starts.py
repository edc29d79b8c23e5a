"""Which request begins when: one in each turn of the event loop.

Of 10,000 requests that arrive at once each would take its first step, until it first waits, in the
same turn: 4 s (2026-11-29) without a token for any stream, and all of them past the bounds that
would have refused most, since those look at what has begun. With one in a turn, streams and bounds
have their turn in between; a request that comes alone waits for none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class RequestStarts:
    """Of one server. `begin` from the loop's own thread only."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_taken = False  # this turn

    def begin(self, start: Callable[[], None]) -> None:
        """Call `start` now, or in a turn of its own behind those who wait for theirs."""
        if self._is_taken:
            self._waiting.append(start)
        else:
            self._take_turn(start)

    def _take_turn(self, start: Callable[[], None]) -> None:
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._next_turn)
        start()

    def _next_turn(self) -> None:
        self._is_taken = False
        if self._waiting:
            self._take_turn(self._waiting.popleft())
