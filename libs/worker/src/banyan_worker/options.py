"""What may differ between workers, apart from what they run."""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.policies.onboard import Cheapest, OnboardPolicy
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Bounds and times of a worker.

    `grace_ns`: how long a gateway's stream may be away before its sequences are cancelled.
    `longest_lease_ns` caps what a prefill asks for. `pull_silence_s`: a pull that says nothing
    for this long has broken; its source says something every `heartbeat_s`.
    `unknown_lease_wait_s`: a pull may overtake the prefill that it is for. `bind_address` is
    where to listen if that is not the address that others call.
    """

    bind_address: str = ""
    limits: EngineLimits = field(default_factory=EngineLimits)
    onboard: OnboardPolicy = field(default_factory=Cheapest)
    grace_ns: int = 5 * NS_PER_S
    heartbeat_s: float = 1.0
    longest_lease_ns: int = 60 * NS_PER_S
    watch_interval_s: float = 0.05
    alive_lease_ns: int = 3 * NS_PER_S
    events_interval_s: float = 0.05
    snapshot_interval_s: float = 30.0
    pull_silence_s: float = 3.0
    unknown_lease_wait_s: float = 1.0
    store_timeout_s: float = 5.0
    max_pulls: int = 256
    max_offload_blocks: int = 4096
    offload: bool = True
    deliver_s: float = 3.0
