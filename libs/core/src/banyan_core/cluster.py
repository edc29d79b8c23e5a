"""The router's view of the workers, folded from what it watches and from what it did itself.

A worker's report is up to 50 ms old and a request takes a moment to arrive there, so a view made
of reports alone would send a burst to one worker. Hence each worker is seen as its last report
plus the router's own placements that the report does not contain yet. A newer epoch of a worker
replaces the older one with all that was known of it; facts of an older epoch are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from banyan_core.machine import Stepped
from banyan_core.types import NS_PER_S, WorkerLoad, WorkerRef

SILENCE_NS = 3 * NS_PER_S
PLACEMENT_NS = 5 * NS_PER_S
FORGET_NS = 60 * NS_PER_S

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A watch began: the worker said who it is and what it serves."""

    ref: WorkerRef
    card_digest: bytes
    model: str
    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class LoadReported:
    """A worker's load. A worker that has nothing to say repeats it at least every second."""

    worker_id: str
    epoch: int
    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The watch of this life of the worker broke."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a placement will add to one worker's load."""

    worker_id: str
    num_tokens: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class PlacedHere:
    """This router just placed a choice of a request; `choice` is "request/choice".

    Sequence ids are "request/choice/attempt" and the gateway numbers each verb anew, so what a
    worker admits is matched by choice.
    """

    choice: str
    shares: tuple[Share, ...]


ClusterFact = WorkerSeen | LoadReported | WorkerLost | PlacedHere

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class LivenessChanged:
    """A worker became live or stopped being so; for logs and figures."""

    ref: WorkerRef
    live: bool
    reason: str


# ---------------------------------------------------------------- the frozen view


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker at one instant. `num_placed_*` are this router's placements not yet reported."""

    ref: WorkerRef
    card_digest: bytes
    model: str
    num_blocks: int
    block_size: int
    load: WorkerLoad
    age_ns: int
    live: bool
    num_placed_sequences: int = 0
    num_placed_tokens: int = 0
    num_placed_blocks: int = 0

    @property
    def num_sequences(self) -> int:
        return self.load.num_running + self.load.num_waiting + self.num_placed_sequences

    @property
    def num_queued_tokens(self) -> int:
        return self.load.num_waiting_tokens + self.num_placed_tokens

    @property
    def num_free_blocks(self) -> int:
        return max(0, self.load.num_free_blocks - self.num_placed_blocks)


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All known workers, in the order of their ids. `now` is on the fold's clock."""

    now: int
    workers: tuple[WorkerView, ...]

    def worker(self, worker_id: str) -> WorkerView | None:
        return next((w for w in self.workers if w.ref.worker_id == worker_id), None)


# ---------------------------------------------------------------- the machine


@dataclass(slots=True)
class _Worker:
    """`placed` keeps the order in which its shares end; the sums are of all of them."""

    seen: WorkerSeen
    load: WorkerLoad
    reported_at: int
    live: bool = True
    placed: dict[str, tuple[int, Share]] = field(default_factory=dict)  # choice -> (until, share)
    num_placed_tokens: int = 0
    num_placed_blocks: int = 0

    def place(self, choice: str, until: int, share: Share) -> None:
        self.forget(choice)
        self.placed[choice] = (until, share)
        self.num_placed_tokens += share.num_tokens
        self.num_placed_blocks += share.num_blocks

    def forget(self, choice: str) -> None:
        placed = self.placed.pop(choice, None)
        if placed is not None:
            self.num_placed_tokens -= placed[1].num_tokens
            self.num_placed_blocks -= placed[1].num_blocks

    def forget_until(self, now: int) -> None:
        while self.placed:
            choice, (until, _) = next(iter(self.placed.items()))
            if now < until:
                return
            self.forget(choice)

    @property
    def next_wake(self) -> int:
        wake = self.reported_at + (SILENCE_NS if self.live else FORGET_NS)
        if self.placed:
            until, _ = next(iter(self.placed.values()))
            return min(wake, until)
        return wake


class ClusterView:
    """Folds facts into snapshots; wakes when silence or the age of a placement must be noticed."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def step(self, now: int, facts: Sequence[ClusterFact]) -> Stepped[LivenessChanged]:
        """Fold `facts`, then what time alone brought about."""
        changes: list[LivenessChanged] = []
        for fact in facts:
            match fact:
                case WorkerSeen():
                    self._seen(now, fact, changes)
                case LoadReported():
                    self._reported(now, fact, changes)
                case WorkerLost():
                    self._lost(fact, changes)
                case PlacedHere():
                    self._placed(now, fact)
        self._pass_time(now, changes)
        return Stepped(changes, self._next_wake())

    def snapshot(self, now: int) -> ClusterSnapshot:
        """The view at `now`, frozen."""
        workers = (self._workers[worker_id] for worker_id in sorted(self._workers))
        return ClusterSnapshot(now, tuple(_view_of(worker, now) for worker in workers))

    def _seen(self, now: int, fact: WorkerSeen, changes: list[LivenessChanged]) -> None:
        known = self._workers.get(fact.ref.worker_id)
        if known is not None and fact.ref.epoch < known.seen.ref.epoch:
            return
        if known is None or fact.ref.epoch > known.seen.ref.epoch:
            # No room and no rate until the first report: better late than into the unknown.
            self._workers[fact.ref.worker_id] = _Worker(fact, WorkerLoad(), now)
            changes.append(LivenessChanged(fact.ref, True, "seen"))
            return
        known.seen = fact
        self._revive(now, known, changes)

    def _reported(self, now: int, fact: LoadReported, changes: list[LivenessChanged]) -> None:
        known = self._of_epoch(fact.worker_id, fact.epoch)
        if known is None:
            return
        known.load = fact.load
        for sequence_id in fact.load.admitted:
            known.forget(sequence_id.rpartition("/")[0])
        self._revive(now, known, changes)

    def _lost(self, fact: WorkerLost, changes: list[LivenessChanged]) -> None:
        known = self._of_epoch(fact.worker_id, fact.epoch)
        if known is not None and known.live:
            known.live = False
            changes.append(LivenessChanged(known.seen.ref, False, "its watch broke"))

    def _placed(self, now: int, fact: PlacedHere) -> None:
        for share in fact.shares:
            known = self._workers.get(share.worker_id)
            if known is not None:
                known.place(fact.choice, now + PLACEMENT_NS, share)

    def _of_epoch(self, worker_id: str, epoch: int) -> _Worker | None:
        known = self._workers.get(worker_id)
        return known if known is not None and known.seen.ref.epoch == epoch else None

    def _revive(self, now: int, known: _Worker, changes: list[LivenessChanged]) -> None:
        known.reported_at = now
        if not known.live:
            known.live = True
            changes.append(LivenessChanged(known.seen.ref, True, "heard again"))

    def _pass_time(self, now: int, changes: list[LivenessChanged]) -> None:
        for worker_id, known in list(self._workers.items()):
            if known.live and now >= known.reported_at + SILENCE_NS:
                known.live = False
                changes.append(LivenessChanged(known.seen.ref, False, "silent for 3 s"))
            if now >= known.reported_at + FORGET_NS:
                del self._workers[worker_id]
            known.forget_until(now)

    def _next_wake(self) -> int | None:
        return min((known.next_wake for known in self._workers.values()), default=None)


def _view_of(worker: _Worker, now: int) -> WorkerView:
    return WorkerView(
        ref=worker.seen.ref,
        card_digest=worker.seen.card_digest,
        model=worker.seen.model,
        num_blocks=worker.seen.num_blocks,
        block_size=worker.seen.block_size,
        load=worker.load,
        age_ns=now - worker.reported_at,
        live=worker.live and now < worker.reported_at + SILENCE_NS,
        num_placed_sequences=len(worker.placed),
        num_placed_tokens=worker.num_placed_tokens,
        num_placed_blocks=worker.num_placed_blocks,
    )
