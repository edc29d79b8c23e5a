"""What a routing policy sees: the cluster, the query, and who holds the prompt's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from banyan_core.cluster import ClusterSnapshot, WorkerView
from banyan_core.placement import Decision, Placement, PlaceQuery
from banyan_core.policies.draw import Draws
from banyan_core.types import Refusal

STORE_PREFIX = "kvstore-"
"""Ids of holders that keep blocks but run nothing start with this."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the index said: per holder, how many of the prompt's blocks from the first on.

    Not `known` means that the index did not answer: nobody counts as holding anything.
    """

    num_blocks: tuple[tuple[str, int], ...] = ()
    known: bool = True


@dataclass(frozen=True, slots=True)
class RoutingView:
    """All that a routing policy may look at. `cluster.now` is the instant of the decision.

    `num_tokens` must have their KV before the next one can be sampled. Each scorer asks for each
    worker, so what follows from the question alone is worked out once.
    """

    cluster: ClusterSnapshot
    query: PlaceQuery
    holdings: Holdings
    num_tokens: int = field(init=False)
    _held: Mapping[str, int] = field(init=False)
    _num_stored_blocks: int = field(init=False)  # the longest prefix that one kvstore has

    def __post_init__(self) -> None:
        held = self.holdings.num_blocks
        stored = [count for name, count in held if name.startswith(STORE_PREFIX)]
        num_tokens = self.query.num_prompt_tokens + self.query.num_output_tokens
        object.__setattr__(self, "num_tokens", num_tokens)
        object.__setattr__(self, "_held", dict(held))
        object.__setattr__(self, "_num_stored_blocks", max(stored, default=0))

    def num_cached_tokens(self, worker: WorkerView) -> int:
        """Tokens that this worker holds. The last one is always computed."""
        num_blocks = self._held.get(worker.ref.worker_id)
        if not num_blocks:
            return 0
        return max(0, min(num_blocks * worker.block_size, self.num_tokens - 1))

    def num_uncached_tokens(self, worker: WorkerView) -> int:
        return self.num_tokens - self.num_cached_tokens(worker)

    def num_stored_tokens(self, worker: WorkerView) -> int:
        """Tokens that the worker lacks and could fetch from a kvstore."""
        stored = min(self._num_stored_blocks * worker.block_size, self.num_tokens - 1)
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
