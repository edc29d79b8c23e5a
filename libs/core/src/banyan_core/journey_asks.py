"""What a journey asks of routers and workers, made from the request and what stands of a choice."""

from __future__ import annotations

from dataclasses import replace

from banyan_core.choice import Choice
from banyan_core.hashing import derive
from banyan_core.journey_messages import Accepted
from banyan_core.placement import PlaceQuery
from banyan_core.types import SequenceSpec


def place_query(
    accepted: Accepted, choice: Choice, now: int, full_workers: tuple[str, ...]
) -> PlaceQuery:
    """Where should the rest of this choice run? Takes a new attempt number."""
    kept = choice.kept_prefill()
    return PlaceQuery(
        request_id=accepted.request_id,
        choice=choice.index,
        attempt=choice.next_attempt(),
        card_digest=accepted.card_digest,
        block_hashes=accepted.block_hashes,
        num_prompt_tokens=len(accepted.prompt_token_ids),
        num_output_tokens=len(choice.tokens),
        max_tokens=accepted.sampling.max_tokens - len(choice.tokens),
        priority=accepted.priority,
        excluded=tuple(sorted({*choice.avoided(now), *full_workers})),
        kept_prefill="" if kept is None else kept.worker.worker_id,
    )


def sequence_spec(
    accepted: Accepted, gateway: tuple[str, int], choice: Choice, sequence_id: str, now: int
) -> SequenceSpec:
    """All that a worker must know; choice i draws with H(seed, i), wherever it runs."""
    deadline = accepted.deadline_ns
    return SequenceSpec(
        sequence_id=sequence_id,
        gateway_id=gateway[0],
        gateway_epoch=gateway[1],
        card_digest=accepted.card_digest,
        prompt_token_ids=accepted.prompt_token_ids,
        output_token_ids=tuple(token.token_id for token in choice.tokens),
        sampling=replace(accepted.sampling, seed=derive(accepted.sampling.seed, choice.index)),
        salt=accepted.salt,
        priority=accepted.priority,
        remaining_ns=0 if deadline is None else max(1, deadline - now),
        adapter=accepted.adapter,
    )
