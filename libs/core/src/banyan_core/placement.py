"""Where a sequence is to run: what the router is asked, what it answers, and what it thought.

Frozen values, as all in `types`.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.types import BlockHash, Role, WorkerRef


@dataclass(frozen=True, slots=True)
class PlaceQuery:
    """What the gateway asks a router.

    Hashes are those of the prompt's full blocks, in order. `excluded` holds worker ids that were
    lost or refused at this moment. With `kept_prefill` only the decode worker is placed again.
    """

    request_id: str
    choice: int
    attempt: int
    card_digest: bytes
    block_hashes: tuple[BlockHash, ...]
    num_prompt_tokens: int
    num_output_tokens: int
    max_tokens: int
    priority: int = 0
    excluded: tuple[str, ...] = ()
    kept_prefill: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a sequence runs. No `prefill` means unsplit: decode computes the prompt as well.

    `skip_store`: no kvstore is known to have more than the worker that computes the prompt.
    """

    decode: WorkerRef
    prefill: WorkerRef | None = None
    num_expected_cached_tokens: int = 0
    skip_store: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """One scorer's opinion of one candidate, in [0, 1], 1 is best."""

    name: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that was considered for a role; `filtered` says why it was out, if it was."""

    worker_id: str
    role: Role
    filtered: str = ""
    scores: tuple[Score, ...] = ()
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy thought, complete enough to explain it and to replay it."""

    policy: str
    number: int
    candidates: tuple[Candidate, ...] = ()
    reason: str = ""
    view_age_ns: int = 0
