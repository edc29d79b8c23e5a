"""The global index seam: which holder (worker or store) has which block.

A hint, never a truth: a wrong entry costs time. Only the writer that holds the lease may write,
and each write carries its fencing token; a writer that lost the lease gets `Fenced`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from banyan_core.types import BlockHash


class IndexUnavailable(Exception):
    """The index cannot be reached now. Callers go on without it."""


class Fenced(Exception):
    """Another writer holds the lease: this one must stop writing."""


class KvIndex(Protocol):
    """Every call raises IndexUnavailable, within a bounded time, when the server is away."""

    async def acquire(self, owner: str, ttl_s: float) -> int | None:
        """Take or renew the writer's lease. The fencing token, or None while another has it.

        A renewal by the same owner returns the same token; each new holder gets a higher one.
        """
        ...

    async def add(
        self, fence: int, holder: str, epoch: int, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None: ...

    async def remove(self, fence: int, holder: str, hashes: Sequence[BlockHash]) -> None: ...

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        """Forget, in O(1), all that this holder had in older epochs."""
        ...

    async def drop_holder(self, fence: int, holder: str) -> None: ...

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        """Per holder, how many of these blocks it has from the first on without a hole."""
        ...

    async def close(self) -> None: ...
