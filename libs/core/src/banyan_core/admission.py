"""Whether a worker takes a sequence: at once yes, or no with the reason and a time.

What is admitted waits inside the worker, unseen by placement; so the bound is low, and a request
past it waits in its gateway's queue, where classes, deadlines and better views are known.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_MS, NS_PER_S, ModelCard, Refusal, SequenceSpec, WorkerLoad

SHORTEST_RETRY_NS = 20 * NS_PER_MS
LONGEST_RETRY_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """What a worker knows of itself. The load counts sequences whose KV is being fetched."""

    card: ModelCard
    num_blocks: int
    limits: EngineLimits
    load: WorkerLoad


def refuse(spec: SequenceSpec, view: AdmissionView) -> Refusal | None:
    """None is a yes."""
    return _unfit(spec, view) or _full(spec, view)


def _unfit(spec: SequenceSpec, view: AdmissionView) -> Refusal | None:
    """It cannot run here, now or later."""
    card = view.card
    num_tokens = len(spec.prompt_token_ids) + len(spec.output_token_ids)
    capacity = view.num_blocks * card.block_size
    if spec.card_digest != card.digest:
        return Refusal(f"model card {spec.card_digest.hex()}, this worker has {card.digest.hex()}")
    if not spec.prompt_token_ids:
        return Refusal("prompt_token_ids: expected at least one token")
    if num_tokens > card.context_tokens:
        return Refusal(f"{num_tokens} tokens, the context has {card.context_tokens}")
    if num_tokens > capacity:
        return Refusal(f"{num_tokens} tokens, this worker's KV has room for {capacity}")
    return None


def _full(spec: SequenceSpec, view: AdmissionView) -> Refusal | None:
    """Not now: `retry_after_ns` says when a place should be free."""
    load, limits = view.load, view.limits
    if load.draining:
        return Refusal("draining", LONGEST_RETRY_NS)
    if load.num_waiting >= limits.max_waiting:
        return Refusal(f"{load.num_waiting} sequences wait", _retry_after_ns(load))
    num_tokens = load.num_waiting_tokens + len(spec.prompt_token_ids)
    if load.num_waiting and num_tokens > limits.max_waiting_tokens:
        return Refusal(f"{load.num_waiting_tokens} tokens wait", _retry_after_ns(load))
    return None


def _retry_after_ns(load: WorkerLoad) -> int:
    """A share of the time that what waits will take, at the measured rate."""
    if not load.prefill_tokens_per_s:
        return SHORTEST_RETRY_NS
    all_s = load.num_waiting_tokens / load.prefill_tokens_per_s
    share_ns = round(all_s / max(1, load.num_waiting) * NS_PER_S)
    return min(max(share_ns, SHORTEST_RETRY_NS), LONGEST_RETRY_NS)
