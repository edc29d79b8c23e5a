"""The autoscaler's loop: every period, what each role should have, and why.

It hears workers through the bus, asks the actuator how many replicas there are, lets the policy
of each role decide, and tells the actuator. Everything it decides is published, also that nothing
is to do; a change is published when the actuator has answered, so that the event says what
happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from banyan_core.events import Event, Heard, ScaleDecided, WorkerAlive, WorkerGone
from banyan_core.machine import Stepped
from banyan_core.policies.scaling import Replica, ScalingPolicy, ScalingView
from banyan_core.policies.scaling_limits import Limits, ScalingDecision, ScalingState, decide
from banyan_core.types import NS_PER_S, Role

PERIOD_NS = 15 * NS_PER_S
FORGET_NS = 60 * NS_PER_S
"""How long past its lease a silent worker counts as a replica without figures."""
MAX_WORKERS = 10_000

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class ReplicaCounts:
    """The actuator's answer: replicas of each role that exist or start."""

    counts: tuple[tuple[Role, int], ...]


@dataclass(frozen=True, slots=True)
class ReplicasSet:
    """The actuator took the number; `applied` is False when it only noted it (dry run)."""

    role: Role
    num_replicas: int
    applied: bool


@dataclass(frozen=True, slots=True)
class ActuatorFailed:
    """The actuator could not; without a role it could not even count."""

    role: Role | None
    reason: str


ScalingFact = Event | ReplicaCounts | ReplicasSet | ActuatorFailed

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class CountReplicas:
    """Ask the actuator; the answer is `ReplicaCounts` or `ActuatorFailed`."""


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Tell the actuator; the answer is `ReplicasSet` or `ActuatorFailed`."""

    role: Role
    num_replicas: int
    decision: ScalingDecision


@dataclass(frozen=True, slots=True)
class Publish:
    """Say on the bus what was decided."""

    decided: ScaleDecided


ScalingCommand = CountReplicas | SetReplicas | Publish


# ---------------------------------------------------------------- the machine


@dataclass(frozen=True, slots=True)
class RoleScaling:
    """How one role is scaled: its policy, by name for the events, and its limits."""

    policy_name: str
    policy: ScalingPolicy
    limits: Limits


@dataclass(slots=True)
class _Worker:
    alive: WorkerAlive
    heard_at: int


@dataclass(frozen=True, slots=True)
class _Pending:
    decision: ScalingDecision
    state_before: ScalingState


class ScalingLoop:
    """`step(now, facts)`. Roles without a `RoleScaling` are left alone."""

    def __init__(
        self, roles: Mapping[Role, RoleScaling], actuator: str, period_ns: int = PERIOD_NS
    ) -> None:
        self._roles = {role: roles[role] for role in Role if role in roles}
        self._actuator = actuator
        self._period_ns = period_ns
        self._next_at: int | None = None
        self._counting = False
        self._heard: dict[str, Heard] = {}
        self._workers: dict[str, _Worker] = {}
        self._states = {role: ScalingState() for role in self._roles}
        self._pending: dict[Role, _Pending] = {}

    def step(self, now: int, facts: Sequence[ScalingFact]) -> Stepped[ScalingCommand]:
        if self._next_at is None:
            self._next_at = now + self._period_ns
        commands: list[ScalingCommand] = []
        for fact in facts:
            self._apply(now, fact, commands)
        if now >= self._next_at:
            self._next_at = now + self._period_ns
            self._forget(now)
            if not self._counting:
                self._counting = True
                commands.append(CountReplicas())
        return Stepped(commands, self._next_at)

    def _apply(self, now: int, fact: ScalingFact, commands: list[ScalingCommand]) -> None:
        if isinstance(fact, Event):
            self._hear(now, fact)
        elif isinstance(fact, ReplicaCounts):
            self._counting = False
            self._decide_all(now, dict(fact.counts), commands)
        elif isinstance(fact, ReplicasSet):
            self._settle(fact.role, fact.applied, "", commands)
        elif fact.role is None:
            self._counting = False
        else:
            self._settle(fact.role, False, f"; actuator failed: {fact.reason}", commands)

    # ------------------------------------------------------------ workers

    def _hear(self, now: int, event: Event) -> None:
        if not isinstance(event.payload, WorkerAlive | WorkerGone):
            return
        if not self._heard.setdefault(event.producer, Heard()).is_news(event.epoch, event.seq):
            return
        worker_id = event.payload.worker.worker_id
        if isinstance(event.payload, WorkerAlive):
            self._workers[worker_id] = _Worker(event.payload, now)
        else:
            self._workers.pop(worker_id, None)

    def _forget(self, now: int) -> None:
        for worker_id, worker in list(self._workers.items()):
            if now - worker.heard_at > worker.alive.lease_ns + FORGET_NS:
                del self._workers[worker_id]
        while len(self._workers) > MAX_WORKERS:
            del self._workers[next(iter(self._workers))]
        while len(self._heard) > 2 * MAX_WORKERS:
            del self._heard[next(iter(self._heard))]

    def _view(self, now: int, role: Role, num_replicas: int) -> ScalingView:
        """Workers of the role, draining ones left out; what is missing to the count starts up.

        A worker past its lease is a replica without figures, as long as the count has room for
        it: with all its replicas heard, a silent one has been replaced.
        """
        alive, silent = [], []
        for worker_id in sorted(self._workers):
            worker = self._workers[worker_id]
            said = worker.alive
            if said.worker.role is not role or said.load.draining:
                continue
            if now - worker.heard_at <= said.lease_ns:
                alive.append(Replica(worker_id, True, said.load, said.num_blocks))
            else:
                silent.append(Replica(worker_id, True, None))
        room = max(0, num_replicas - len(alive))
        silent = silent[:room]
        starting = [
            Replica(f"starting-{i}", False, None) for i in range(max(0, room - len(silent)))
        ]
        return ScalingView(now, role, num_replicas, (*alive, *silent, *starting))

    # ------------------------------------------------------------ decisions

    def _decide_all(
        self, now: int, counts: Mapping[Role, int], commands: list[ScalingCommand]
    ) -> None:
        for role, scaling in self._roles.items():
            if role in self._pending:
                continue
            before = self._states[role]
            view = self._view(now, role, counts.get(role, 0))
            decision, self._states[role] = decide(scaling.policy, scaling.limits, view, before)
            if decision.is_change:
                self._pending[role] = _Pending(decision, before)
                wanted = decision.num_replicas_wanted
                commands.append(SetReplicas(role, wanted, decision))
            else:
                commands.append(self._publish(role, decision, False, ""))

    def _settle(
        self, role: Role, applied: bool, suffix: str, commands: list[ScalingCommand]
    ) -> None:
        pending = self._pending.pop(role, None)
        if pending is None:
            return
        if not applied:  # nothing changed: no cool-down, no rate used up
            before = pending.state_before
            self._states[role] = replace(
                self._states[role], changes=before.changes, changed_at=before.changed_at
            )
        commands.append(self._publish(role, pending.decision, applied, suffix))

    def _publish(
        self, role: Role, decision: ScalingDecision, applied: bool, suffix: str
    ) -> Publish:
        return Publish(
            ScaleDecided(
                role,
                decision.num_replicas_now,
                decision.num_replicas_wanted,
                self._roles[role].policy_name,
                decision.reason + suffix,
                self._actuator,
                applied,
                decision.figure,
                decision.target,
                decision.limited_by,
            )
        )
