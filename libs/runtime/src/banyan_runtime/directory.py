"""The membership seam: addresses by service name (`router`, `prefill`, `decode`, `kvstore`)."""

from __future__ import annotations

from typing import Protocol


class Directory(Protocol):
    async def addresses(self, service: str) -> tuple[str, ...]:
        """Known addresses `host:port`, sorted. Empty when none is known; never raises for that."""
        ...
