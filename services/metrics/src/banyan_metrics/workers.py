"""The load of every worker as it last said, for figures only: no decision is made on it."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.events import WorkerAlive, WorkerGone
from banyan_core.types import NS_PER_S

MAX_WORKERS = 1_000
FORGET_NS = 600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """What is known of a worker; `state` is alive, silent (past its lease) or gone."""

    said: WorkerAlive
    state: str
    age_ns: int
    reason: str = ""

    @property
    def worker_id(self) -> str:
        return self.said.worker.worker_id

    @property
    def kv_usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        total = self.said.num_blocks
        return 1 - self.said.load.num_free_blocks / total if total else 0.0


@dataclass(slots=True)
class _Entry:
    said: WorkerAlive
    heard_at: int
    gone: bool = False
    reason: str = ""


class WorkerTable:
    """By worker id; a newer epoch replaces the older, nothing of an older one is used."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def apply(self, now: int, payload: WorkerAlive | WorkerGone) -> None:
        """Take a worker's word at `now` (ns, monotonic)."""
        ref = payload.worker
        entry = self._entries.get(ref.worker_id)
        if entry is not None and ref.epoch < entry.said.worker.epoch:
            return
        if isinstance(payload, WorkerAlive):
            self._entries[ref.worker_id] = _Entry(payload, now)
        elif entry is not None:
            entry.gone, entry.reason, entry.heard_at = True, payload.reason, now
        self._forget(now)

    def _forget(self, now: int) -> None:
        for worker_id, entry in list(self._entries.items()):
            if now - entry.heard_at > FORGET_NS:
                del self._entries[worker_id]
        while len(self._entries) > MAX_WORKERS:
            del self._entries[next(iter(self._entries))]

    def figures(self, now: int) -> list[WorkerFigures]:
        """All workers heard of in the last ten minutes, by id."""
        return [self._figures(now, self._entries[key]) for key in sorted(self._entries)]

    @staticmethod
    def _figures(now: int, entry: _Entry) -> WorkerFigures:
        age = now - entry.heard_at
        state = "gone" if entry.gone else "alive" if age <= entry.said.lease_ns else "silent"
        return WorkerFigures(entry.said, state, age, entry.reason)
