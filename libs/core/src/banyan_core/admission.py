"""Whether a worker takes a sequence: at once yes, or no with the reason and a time.

What is admitted waits inside the worker, unseen by placement; so the bounds are low, and a request
past them waits in its gateway's queue, where classes, deadlines and better views are known. Low,
but not zero: what waits here keeps the engine busy while gateways find out that a place is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_MS, NS_PER_S, ModelCard, Refusal, SequenceSpec, WorkerLoad

SHORTEST_RETRY_NS = 20 * NS_PER_MS
LONGEST_RETRY_NS = 5 * NS_PER_S


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """What a worker knows of itself. The load counts sequences whose KV is being fetched.

    `num_awaiting_kv` of those that wait are being computed by other workers.
    """

    card: ModelCard
    num_blocks: int
    limits: EngineLimits
    load: WorkerLoad
    num_awaiting_kv: int = 0


def refuse(
    spec: SequenceSpec, view: AdmissionView, *, prefilled_elsewhere: bool = False
) -> Refusal | None:
    """None is a yes. A prompt `prefilled_elsewhere` waits for its KV, not for this engine."""
    return _unfit(spec, view) or _full(spec, view, prefilled_elsewhere)


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


def _full(spec: SequenceSpec, view: AdmissionView, prefilled_elsewhere: bool) -> Refusal | None:
    """Not now: `retry_after_ns` says when a place should be free."""
    load, limits = view.load, view.limits
    num_tokens = load.num_waiting_tokens + len(spec.prompt_token_ids)
    too_many = num_tokens > min(limits.max_waiting_tokens, _tokens_in_time(view))
    if load.draining:
        return Refusal("draining", LONGEST_RETRY_NS)
    if _num_without_place(spec, view) >= limits.max_waiting:
        return Refusal(f"{load.num_waiting} sequences wait", _retry_after_ns(load))
    someone_waits = load.num_waiting > view.num_awaiting_kv
    if someone_waits and too_many and not prefilled_elsewhere:
        return Refusal(f"{load.num_waiting_tokens} tokens wait", _retry_after_ns(load))
    return None


def _num_without_place(spec: SequenceSpec, view: AdmissionView) -> int:
    """Of those that wait, whom no free slot awaits, or all when blocks are what lacks.

    A decode worker's sequences wait for their KV, too: those have their slots.
    """
    load = view.load
    num_slots = max(0, view.limits.max_running - load.num_running)
    num_needed = load.num_waiting_tokens + len(spec.prompt_token_ids) + len(spec.output_token_ids)
    if num_needed > load.num_free_blocks * view.card.block_size:
        return load.num_waiting
    return max(0, load.num_waiting - num_slots)


def _tokens_in_time(view: AdmissionView) -> float:
    """Prompt tokens that it computes within `max_waiting_s`; no bound before it is measured."""
    return view.load.prefill_tokens_per_s * view.limits.max_waiting_s or float("inf")


def _retry_after_ns(load: WorkerLoad) -> int:
    """A share of the time that what waits will take, at the measured rate."""
    if not load.prefill_tokens_per_s:
        return SHORTEST_RETRY_NS
    all_s = load.num_waiting_tokens / load.prefill_tokens_per_s
    share_ns = round(all_s / max(1, load.num_waiting) * NS_PER_S)
    return min(max(share_ns, SHORTEST_RETRY_NS), LONGEST_RETRY_NS)
