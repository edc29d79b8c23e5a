"""What the services tell each other through the bus, as the core sees it.

The wire has the same messages in `proto/banyan/v1/events.proto`. No event carries token ids or
text: lengths, durations and reasons only. `time_unix_ns` is the producer's wall clock; it sorts
events into windows and never decides a lease.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.types import Outcome, Role, WorkerLoad, WorkerRef


@dataclass(frozen=True, slots=True)
class RequestAccepted:
    """A request has an id: from here on it will have exactly one terminal state."""

    request_id: str
    tenant: str
    model: str
    num_prompt_tokens: int = 0
    stream: bool = False


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """The one terminal state of an accepted request, with what the gateway measured.

    `ttft_ns` is None when no token was written. `itl_ns` are the gaps between tokens, `ledger`
    the named parts of the request's time.
    """

    request_id: str
    tenant: str
    model: str
    outcome: Outcome
    reason: str = ""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    ttft_ns: int | None = None
    e2e_ns: int = 0
    itl_ns: tuple[int, ...] = ()
    num_recoveries: int = 0
    ledger: tuple[tuple[str, int], ...] = ()
    prefill_worker_id: str = ""
    decode_worker_id: str = ""
    finish_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatewayAlive:
    """A gateway that stops saying this for `lease_ns` has lost its requests."""

    num_requests: int
    lease_ns: int


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    """A worker and its load; it counts as silent when this is not repeated for `lease_ns`."""

    worker: WorkerRef
    model: str
    num_blocks: int
    load: WorkerLoad
    lease_ns: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker left on purpose."""

    worker: WorkerRef
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScaleDecided:
    """One decision of the autoscaler; `applied` says whether the actuator really acted.

    `figure` of `target` is what the policy saw; `limited_by` names the last limit that held.
    """

    role: Role
    num_replicas_now: int
    num_replicas_wanted: int
    policy: str
    reason: str
    actuator: str = ""
    applied: bool = False
    figure: float | None = None
    target: float | None = None
    limited_by: str = ""


Payload = RequestAccepted | RequestEnded | GatewayAlive | WorkerAlive | WorkerGone | ScaleDecided


@dataclass(frozen=True, slots=True)
class Event:
    """A payload in its envelope. `seq` counts from 1 within one topic and epoch of a producer."""

    producer: str
    epoch: int
    seq: int
    time_unix_ns: int
    payload: Payload


@dataclass(slots=True)
class Heard:
    """What a consumer knows of one producer's place in one topic.

    Order within a topic holds, so what is not newer is a duplicate (or of an older life), and
    what is more than one newer means that events were dropped.
    """

    epoch: int = -1
    seq: int = 0
    num_missing: int = 0

    def is_news(self, epoch: int, seq: int) -> bool:
        """Take note of an event. False: already seen, or from an older epoch.

        The first event ever heard of a producer opens no gap: the topic may have been trimmed.
        """
        if (epoch, seq) <= (self.epoch, self.seq):
            return False
        if epoch == self.epoch:
            self.num_missing += seq - self.seq - 1
        elif self.epoch >= 0:
            self.num_missing += seq - 1
        self.epoch, self.seq = epoch, seq
        return True
