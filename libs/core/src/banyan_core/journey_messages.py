"""Facts that a request's journey takes and commands that it gives (see `journey`)."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.ledger import Visit
from banyan_core.placement import Decision, Placement, PlaceQuery
from banyan_core.types import (
    Adapter,
    BlockHash,
    Finish,
    LeasedKv,
    Outcome,
    OutputToken,
    Refusal,
    SamplingParams,
    SequenceReport,
    SequenceSpec,
    ShedReason,
    WorkerRef,
)

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class Accepted:
    """A valid request with an id. Instants are on the gateway's monotonic clock."""

    request_id: str
    tenant: str
    model: str
    card_digest: bytes
    prompt_token_ids: tuple[int, ...]
    block_hashes: tuple[BlockHash, ...]
    salt: bytes
    sampling: SamplingParams
    num_choices: int
    priority: int
    received_ns: int
    deadline_ns: int | None
    stream: bool
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A router's answer to the `Place` of this (request, choice, attempt)."""

    request_id: str
    choice: int
    attempt: int
    placement: Placement
    decision: Decision


@dataclass(frozen=True, slots=True)
class NotPlaced:
    """No worker now, or no router: `decision` is None when no router answered."""

    request_id: str
    choice: int
    attempt: int
    refusal: Refusal
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    worker_id: str
    sequence_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker refused, or the call failed (then it is `unreachable`)."""

    worker_id: str
    sequence_id: str
    refusal: Refusal
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """News from a worker's token stream: one engine step's worth for all its sequences."""

    worker_id: str
    reports: tuple[SequenceReport, ...]


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """This life of the worker is over, or cannot be reached any more."""

    worker_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The text of a choice hit a stop string at its `num_tokens`-th token."""

    request_id: str
    choice: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Closed, or so slow that its buffer is full (`reason` says which)."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class GatewayStopping:
    """The grace is over: whatever still runs ends now, with a retryable error."""


JourneyFact = (
    Accepted
    | Placed
    | NotPlaced
    | Admitted
    | Refused
    | Reported
    | WorkerLost
    | Stopped
    | ClientGone
    | GatewayStopping
)

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Place:
    query: PlaceQuery


@dataclass(frozen=True, slots=True)
class StartPrefill:
    worker: WorkerRef
    spec: SequenceSpec
    lease_ns: int
    skip_store: bool = False


@dataclass(frozen=True, slots=True)
class StartDecode:
    worker: WorkerRef
    spec: SequenceSpec
    source: LeasedKv | None
    skip_store: bool = False


@dataclass(frozen=True, slots=True)
class CancelSequence:
    worker_id: str
    sequence_id: str


@dataclass(frozen=True, slots=True)
class AckEnd:
    """The worker may forget this ended sequence."""

    worker_id: str
    sequence_id: str


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    worker: WorkerRef
    lease_id: str


@dataclass(slots=True)  # not frozen: one is made per token
class Deliver:
    """Tokens for the client, in order, each index once; and, once, those of the prompt."""

    request_id: str
    choice: int
    tokens: tuple[OutputToken, ...]
    prompt_logprobs: tuple[OutputToken, ...] = ()


@dataclass(frozen=True, slots=True)
class EndChoice:
    request_id: str
    choice: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class LegRecord:
    """One worker's part in a choice, for people who ask why."""

    sequence_id: str
    worker_id: str
    verb: str
    end: str


@dataclass(frozen=True, slots=True)
class LossRecord:
    """A worker was lost at this instant while it worked on the request."""

    at_ns: int
    worker_id: str
    verb: str
    reason: str


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """All that is kept and published of an ended request. No text, no token ids."""

    request_id: str
    tenant: str
    model: str
    outcome: Outcome
    reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    ttft_ns: int | None
    e2e_ns: int
    itl_ns: tuple[int, ...]
    num_recoveries: int
    ledger: tuple[tuple[str, int], ...]
    decisions: tuple[Decision, ...]
    legs: tuple[LegRecord, ...]
    finish_reasons: tuple[str, ...]
    visits: tuple[Visit, ...] = ()
    losses: tuple[LossRecord, ...] = ()
    shed: ShedReason | None = None


@dataclass(frozen=True, slots=True)
class EndRequest:
    """The one end. `retryable` and `retry_after_ns` shape the client's error, if it is one."""

    record: RequestRecord
    retryable: bool
    retry_after_ns: int


JourneyCommand = (
    Place
    | StartPrefill
    | StartDecode
    | CancelSequence
    | AckEnd
    | ReleaseLease
    | Deliver
    | EndChoice
    | EndRequest
)
