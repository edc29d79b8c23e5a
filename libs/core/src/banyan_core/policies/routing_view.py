"""What a routing policy sees: the cluster, the query, and who holds the prompt's blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from banyan_core.cluster import ClusterSnapshot, WorkerView
from banyan_core.policies.draw import Draws
from banyan_core.types import Decision, Placement, PlaceQuery, Refusal

STORE_PREFIX = "kvstore-"
"""Ids of holders that keep blocks but run nothing start with this."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the index said: per holder, how many of the prompt's blocks from the first on.

    Not `known` means that the index did not answer: nobody counts as holding anything.
    """

    num_blocks: tuple[tuple[str, int], ...] = ()
    known: bool = True

    def of(self, holder: str) -> int:
        return next((count for name, count in self.num_blocks if name == holder), 0)

    @property
    def in_stores(self) -> int:
        """The longest prefix, in blocks, that one kvstore has."""
        stored = [count for name, count in self.num_blocks if name.startswith(STORE_PREFIX)]
        return max(stored, default=0)


@dataclass(frozen=True, slots=True)
class RoutingView:
    """All that a routing policy may look at. `cluster.now` is the instant of the decision."""

    cluster: ClusterSnapshot
    query: PlaceQuery
    holdings: Holdings

    @property
    def num_tokens(self) -> int:
        """Tokens whose KV must be there before the next one can be sampled."""
        return self.query.num_prompt_tokens + self.query.num_output_tokens

    def num_cached_tokens(self, worker: WorkerView) -> int:
        """Tokens that this worker holds. The last one is always computed."""
        held = self.holdings.of(worker.ref.worker_id) * worker.block_size
        return max(0, min(held, self.num_tokens - 1))

    def num_uncached_tokens(self, worker: WorkerView) -> int:
        return self.num_tokens - self.num_cached_tokens(worker)

    def num_stored_tokens(self, worker: WorkerView) -> int:
        """Tokens that the worker lacks and could fetch from a kvstore."""
        stored = min(self.holdings.in_stores * worker.block_size, self.num_tokens - 1)
        return max(0, stored - self.num_cached_tokens(worker))

    def num_needed_blocks(self, worker: WorkerView) -> int:
        """Blocks for all tokens and the next one."""
        return -(-(self.num_tokens + 1) // worker.block_size)


@dataclass(frozen=True, slots=True)
class Routed:
    """A routing policy's answer, with what it thought."""

    outcome: Placement | Refusal
    decision: Decision


class RoutingPolicy(Protocol):
    """A frozen dataclass whose fields are the policy's parameters."""

    def place(self, view: RoutingView, draws: Draws) -> Routed:
        """A pure function: equal arguments, equal answer."""
        ...
