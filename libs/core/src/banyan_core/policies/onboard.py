"""Whether a worker fetches stored KV or computes it: one policy per way of deciding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class OnboardView:
    """What the store has of a prompt that is not here, and how fast things go.

    Rates are moving averages, 0 when nothing was measured yet.
    """

    num_tokens: int
    num_bytes: int
    store_latency_s: float
    store_bytes_per_s: float
    prefill_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class OnboardDecision:
    fetch: bool
    reason: str


class OnboardPolicy(Protocol):
    def decide(self, view: OnboardView) -> OnboardDecision: ...


@dataclass(frozen=True, slots=True)
class Never:
    """Always compute: the base line."""

    def decide(self, view: OnboardView) -> OnboardDecision:
        return OnboardDecision(False, "policy never fetches")


@dataclass(frozen=True, slots=True)
class Always:
    """Always fetch what the store has."""

    def decide(self, view: OnboardView) -> OnboardDecision:
        return OnboardDecision(view.num_tokens > 0, "policy always fetches")


@dataclass(frozen=True, slots=True)
class Cheapest:
    """Fetch when latency + bytes / bandwidth < tokens / prefill rate * `margin`.

    What was never measured is tried: a fetch gives the figure that the next decision needs.
    """

    margin: float = 1.0

    def __post_init__(self) -> None:
        if self.margin <= 0:
            raise ValueError("margin must be above 0")

    def decide(self, view: OnboardView) -> OnboardDecision:
        if view.num_tokens == 0:
            return OnboardDecision(False, "nothing stored")
        if not view.store_bytes_per_s or not view.prefill_tokens_per_s:
            return OnboardDecision(True, "no rate measured yet")
        fetch_s = view.store_latency_s + view.num_bytes / view.store_bytes_per_s
        compute_s = view.num_tokens / view.prefill_tokens_per_s
        reason = f"fetch {fetch_s * 1e3:.1f} ms, compute {compute_s * 1e3:.1f} ms"
        return OnboardDecision(fetch_s < compute_s * self.margin, reason)
