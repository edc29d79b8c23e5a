"""Where a sequence runs: filter, score, pick, for prefill and for decode, and when not to split.

Roles are preferences. With workers of both roles a prompt is split between two workers, unless
what is not cached on the decode worker is so short that moving its KV is not worth it; when no
worker of a role is left, one worker of the other does both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from banyan_core.cluster import WorkerView
from banyan_core.placement import Candidate, Decision, Placement, Score
from banyan_core.policies.draw import Draws
from banyan_core.policies.filters import LASTING, first_reason
from banyan_core.policies.pickers import Picker, any_one, best
from banyan_core.policies.routing_view import Routed, RoutingView
from banyan_core.policies.scorers import (
    PrefillTime,
    Prefix,
    QueuedTokens,
    Room,
    Scorer,
    Sequences,
)
from banyan_core.types import NS_PER_MS, Refusal, Role, WorkerRef

RETRY_SOON_NS = 200 * NS_PER_MS
RETRY_LATE_NS = 1000 * NS_PER_MS
_OTHER_ROLE = {role: f"its role is {role}" for role in Role}


@dataclass(frozen=True, slots=True)
class Profile:
    """Weighted scorers and a picker: how one role is filled."""

    scorers: tuple[tuple[Scorer, float], ...]
    picker: Picker = best


@dataclass(frozen=True, slots=True)
class Profiles:
    """`whole` fills both roles with one worker."""

    prefill: Profile
    decode: Profile
    whole: Profile
    split_above_tokens: int


@dataclass(frozen=True, slots=True)
class Random:
    """Any fitting worker. The base line that every other policy must beat."""

    split_above_tokens: int = 0

    def place(self, view: RoutingView, draws: Draws) -> Routed:
        profile = Profile((), any_one)
        profiles = Profiles(profile, profile, profile, self.split_above_tokens)
        return _Placing("random", view, draws, profiles).place()


@dataclass(frozen=True, slots=True)
class LeastTokens:
    """Prefill where the fewest tokens wait, decode where the fewest sequences run."""

    split_above_tokens: int = 0

    def place(self, view: RoutingView, draws: Draws) -> Routed:
        queued, sequences = (QueuedTokens(), 1.0), (Sequences(), 1.0)
        profiles = Profiles(
            prefill=Profile((queued,)),
            decode=Profile((sequences,)),
            whole=Profile((queued, sequences)),
            split_above_tokens=self.split_above_tokens,
        )
        return _Placing("least_tokens", view, draws, profiles).place()


@dataclass(frozen=True, slots=True)
class PrefixCost:
    """Prefix-aware cost: estimated prefill time for prefill; load, room and prefix for decode."""

    split_above_tokens: int = 32
    default_tokens_per_s: float = 2000.0
    stored_token_cost: float = 0.3
    half_time_s: float = 1.0
    half_sequences: float = 8.0
    time_weight: float = 1.0
    sequences_weight: float = 1.0
    room_weight: float = 0.3
    prefix_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("default_tokens_per_s", "half_time_s", "half_sequences"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        for name in ("time_weight", "sequences_weight", "room_weight", "prefix_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.stored_token_cost <= 1:
            raise ValueError(f"stored_token_cost must be in [0, 1], not {self.stored_token_cost}")

    def place(self, view: RoutingView, draws: Draws) -> Routed:
        prefill_time = PrefillTime(
            self.default_tokens_per_s, self.stored_token_cost, self.half_time_s
        )
        time = (prefill_time, self.time_weight)
        sequences = (Sequences(self.half_sequences), self.sequences_weight)
        room = (Room(), self.room_weight)
        prefix = (Prefix(), self.prefix_weight)
        profiles = Profiles(
            prefill=Profile((time, room)),
            decode=Profile((sequences, room, prefix)),
            whole=Profile((time, sequences, room)),
            split_above_tokens=self.split_above_tokens,
        )
        return _Placing("prefix_cost", view, draws, profiles).place()


class _Placing:
    """One decision in the making. Collects candidates of both roles as it goes."""

    def __init__(self, policy: str, view: RoutingView, draws: Draws, profiles: Profiles) -> None:
        self._policy = policy
        self._view = view
        self._draws = draws
        self._profiles = profiles
        self._reasons = {
            worker.ref.worker_id: first_reason(view, worker) for worker in view.cluster.workers
        }
        self._fit = [w for w in view.cluster.workers if not self._reasons[w.ref.worker_id]]
        self._candidates: list[Candidate] = []

    def place(self) -> Routed:
        if not self._fit:
            return self._refuse()
        if self._view.query.kept_prefill:
            return self._place_decode_again(self._view.query.kept_prefill)
        prefills, decodes = self._of(Role.PREFILL), self._of(Role.DECODE)
        if not prefills or not decodes:
            return self._place_whole(Role.DECODE if prefills else Role.PREFILL)
        decode = self._select(Role.DECODE, decodes, self._profiles.decode)
        uncached = self._view.num_uncached_tokens(decode)
        if uncached <= self._profiles.split_above_tokens:
            bound = self._profiles.split_above_tokens
            return self._routed(
                decode,
                None,
                f"unsplit: only {uncached} tokens are not cached there, {bound} allow it",
            )
        prefill = self._select(Role.PREFILL, prefills, self._profiles.prefill)
        left = self._view.num_uncached_tokens(prefill)
        return self._routed(
            decode, prefill.ref, f"split: {left} of {self._view.num_tokens} tokens to compute"
        )

    def _place_whole(self, missing: Role) -> Routed:
        """One worker for both roles, because no worker of one role can take it."""
        worker = self._select(Role.DECODE, self._fit, self._profiles.whole)
        return self._routed(worker, None, f"unsplit: no {missing} worker can take it")

    def _place_decode_again(self, kept: str) -> Routed:
        pool = self._of(Role.DECODE)
        reason = f"decode again: {kept} goes on with prefill"
        if not pool:
            pool, reason = self._fit, f"{reason}; no decode worker can take it, so any worker may"
        decode = self._select(Role.DECODE, pool, self._profiles.decode)
        known = self._view.cluster.worker(kept)
        return self._routed(decode, None if known is None else known.ref, reason)

    def _of(self, role: Role) -> list[WorkerView]:
        return [worker for worker in self._fit if worker.ref.role is role]

    def _select(self, role: Role, pool: Sequence[WorkerView], profile: Profile) -> WorkerView:
        """Score `pool`, note every worker as a candidate, pick one. `pool` is not empty."""
        totals: list[float] = []
        pooled = {worker.ref.worker_id for worker in pool}
        for worker in self._view.cluster.workers:
            worker_id = worker.ref.worker_id
            if worker_id not in pooled:
                reason = self._reasons[worker_id] or _OTHER_ROLE[worker.ref.role]
                self._candidates.append(Candidate(worker_id, role, reason))
                continue
            scores = tuple(
                [
                    Score(scorer.name, _clamp(scorer.value(self._view, worker)), weight)
                    for scorer, weight in profile.scorers
                ]
            )
            total = _total(scores)
            totals.append(total)
            self._candidates.append(Candidate(worker_id, role, scores=scores, total=total))
        return pool[profile.picker(totals, self._draws, role.value)]

    def _routed(self, decode: WorkerView, prefill: WorkerRef | None, reason: str) -> Routed:
        computes = decode if prefill is None else self._view.cluster.worker(prefill.worker_id)
        computes = computes or decode
        cached = self._view.num_cached_tokens(computes)
        skip_store = self._view.holdings.known and not self._view.num_stored_tokens(computes)
        placement = Placement(decode.ref, prefill, cached, skip_store)
        return Routed(placement, self._decision(reason))

    def _refuse(self) -> Routed:
        for worker in self._view.cluster.workers:
            reason = self._reasons[worker.ref.worker_id]
            self._candidates.append(Candidate(worker.ref.worker_id, worker.ref.role, reason))
        if not self._candidates:
            refusal = Refusal("no worker is known", RETRY_SOON_NS)
        else:
            kinds = Counter(reason.partition(":")[0] for reason in self._reasons.values())
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(kinds.items()))
            refusal = Refusal(f"no worker can take it: {why}", self._retry_after_ns())
        return Routed(refusal, self._decision(refusal.reason))

    def _retry_after_ns(self) -> int:
        """Later when waiting alone will not help: what is too large or of another model."""
        lasting = all(reason.startswith(LASTING) for reason in self._reasons.values())
        return RETRY_LATE_NS if lasting else RETRY_SOON_NS

    def _decision(self, reason: str) -> Decision:
        if not self._view.holdings.known:
            reason += "; the index did not answer, so no prefix was counted"
        return Decision(
            policy=self._policy,
            number=self._draws.number,
            candidates=tuple(self._candidates),
            reason=reason,
            view_age_ns=max((worker.age_ns for worker in self._fit), default=0),
        )


def _clamp(value: float) -> float:
    if value > 1.0:
        return 1.0
    return value if value > 0.0 else 0.0


def _total(scores: Sequence[Score]) -> float:
    """The weighted mean; 0 when nothing weighs."""
    value = weight = 0.0
    for score in scores:
        value += score.value * score.weight
        weight += score.weight
    return value / weight if weight else 0.0
