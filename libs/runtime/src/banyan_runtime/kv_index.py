"""The global index seam: which holder (worker or store) has which block.

A hint, never a truth: a wrong entry costs time. Only the writer that holds the lease may write,
and each write carries its fencing token; a writer that lost the lease gets `Fenced`. What is
written of a holder says how far its story is contained, so that a reader can take a copy and go
on from the bus. All that is written ends by itself if nobody writes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from banyan_core.index_facts import Position
from banyan_core.types import BlockHash


class IndexUnavailable(Exception):
    """The index cannot be reached, or cannot take more, now. Callers go on without it."""


class Fenced(Exception):
    """Another writer holds the lease: this one must stop writing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A holder's blocks, as they were at `at`, maybe with some of what came later."""

    at: Position
    hashes: tuple[BlockHash, ...]


class KvIndex(Protocol):
    """Every call raises IndexUnavailable, within a bounded time, when the server is away."""

    async def acquire(self, owner: str, ttl_s: float) -> int | None:
        """Take or renew the writer's lease. The fencing token, or None while another has it.

        Once it is returned, no write with a smaller token is taken. A renewal returns the same
        token, unless a part of the index has lost its content since.
        """
        ...

    async def add(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        """False when the holder is not there in this epoch: its writer must `replace` it.

        What is of an older epoch than the holder's is ignored.
        """
        ...

    async def remove(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        """As `add`."""
        ...

    async def replace(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        """Exactly these, at one instant for every reader. Ignored when of an older epoch."""
        ...

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        """Forget what this holder had in older epochs."""
        ...

    async def drop_holder(self, fence: int, holder: str) -> None: ...

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        """Per holder, how many of these blocks it has from the first on without a hole."""
        ...

    async def positions(self) -> Mapping[str, Position]:
        """Every holder, and how far its story is contained."""
        ...

    async def load(self, holder: str) -> Loaded | None:
        """All blocks of a holder. None when there is no such holder, or it is being replaced."""
        ...

    async def close(self) -> None: ...
