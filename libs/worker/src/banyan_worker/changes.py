"""One-to-many wake-up: whoever waits is told that something changed, and looks for itself."""

from __future__ import annotations

import asyncio


class Changes:
    """`version` counts changes: who remembers it before looking cannot miss one."""

    def __init__(self) -> None:
        self.version = 0
        self._event = asyncio.Event()

    def notify(self) -> None:
        self.version += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, timeout_s: float, seen: int | None = None) -> bool:
        """Wait for a change, or for one after version `seen`. False when none came in time."""
        if seen is not None and seen != self.version:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
