"""How good a worker would be for a sequence: each scorer one formula, 1 is best.

Loads are turned into scores by `half / (half + load)`: 1 when idle, one half at `half`, and never
equal for two different loads, however large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from banyan_core.cluster import WorkerView
from banyan_core.policies.routing_view import RoutingView


class Scorer(Protocol):
    @property
    def name(self) -> str: ...

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        """In [0, 1]; what lies outside is clamped by the caller."""
        ...


def falling(load: float, half: float) -> float:
    return half / (half + max(0.0, load))


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """Estimated time until the prompt is computed here.

    (queued tokens + uncached tokens) / rate, where a token that a kvstore has costs only
    `stored_token_cost` of a computed one.
    """

    default_tokens_per_s: float
    stored_token_cost: float
    half_s: float
    name: str = "prefill_time"

    def estimate_s(self, view: RoutingView, worker: WorkerView) -> float:
        reported = worker.load.prefill_tokens_per_s
        known = math.isfinite(reported) and reported > 0
        stored = view.num_stored_tokens(worker)
        computed = view.num_uncached_tokens(worker) - stored
        tokens = worker.num_queued_tokens + computed + self.stored_token_cost * stored
        return tokens / (reported if known else self.default_tokens_per_s)

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        return falling(self.estimate_s(view, worker), self.half_s)


@dataclass(frozen=True, slots=True)
class QueuedTokens:
    """Tokens that steps must still compute."""

    half: float = 1000.0
    name: str = "queued_tokens"

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        return falling(worker.num_queued_tokens, self.half)


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences that share the worker's steps, running or about to."""

    half: float = 8.0
    name: str = "sequences"

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        return falling(worker.num_sequences, self.half)


@dataclass(frozen=True, slots=True)
class Room:
    """Share of the worker's blocks that would be left."""

    name: str = "room"

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        held = view.num_cached_tokens(worker) // worker.block_size
        left = worker.num_free_blocks - (view.num_needed_blocks(worker) - held)
        return left / max(1, worker.num_blocks)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Share of the tokens whose KV is here already: nothing to compute, nothing to move."""

    name: str = "prefix"

    def value(self, view: RoutingView, worker: WorkerView) -> float:
        return view.num_cached_tokens(worker) / max(1, view.num_tokens)
