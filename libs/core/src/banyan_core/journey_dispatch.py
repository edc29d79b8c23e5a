"""Starts what a placement says: prefill and decode at once, or the one of them that is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from banyan_core.choice import Choice, Leg, Verb
from banyan_core.journey_asks import sequence_spec
from banyan_core.journey_messages import Accepted, JourneyCommand, StartDecode, StartPrefill
from banyan_core.placement import Placement
from banyan_core.types import LeasedKv, SequenceSpec, WorkerRef


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Of one request; `gateway` is the id and epoch that workers answer to."""

    accepted: Accepted
    gateway: tuple[str, int]
    lease_ns: int
    emit: Callable[[JourneyCommand], None]

    def start(self, now: int, choice: Choice, placement: Placement) -> None:
        kept = choice.kept_prefill()
        if kept is not None:
            self._decode(now, choice, placement, kept)
        elif self.accepted.sampling.max_tokens - len(choice.tokens) == 1:
            self._prefill(now, choice, placement.prefill or placement.decode, placement.skip_store)
        elif placement.prefill is None or placement.prefill == placement.decode:
            self._decode(now, choice, placement, None)
        else:
            prefill = self._prefill(now, choice, placement.prefill, placement.skip_store)
            self._decode(now, choice, placement, prefill)

    def _prefill(self, now: int, choice: Choice, worker: WorkerRef, skip_store: bool) -> Leg:
        leg = self._new_leg(now, choice, worker, Verb.PREFILL)
        leg.leased = True
        self.emit(StartPrefill(worker, self._spec(now, choice, leg), self.lease_ns, skip_store))
        return leg

    def _decode(self, now: int, choice: Choice, placement: Placement, prefill: Leg | None) -> None:
        worker = placement.decode
        leg = self._new_leg(now, choice, worker, Verb.DECODE)
        same = prefill is not None and prefill.worker == worker
        source = None if prefill is None or same else LeasedKv(prefill.worker, prefill.sequence_id)
        skip_store = source is None and placement.skip_store
        self.emit(StartDecode(worker, self._spec(now, choice, leg), source, skip_store))

    def _new_leg(self, now: int, choice: Choice, worker: WorkerRef, verb: Verb) -> Leg:
        sequence_id = f"{self.accepted.request_id}/{choice.index}/{choice.next_attempt()}"
        leg = Leg(sequence_id, worker, verb, sent_ns=now, first_index=len(choice.tokens))
        choice.legs.append(leg)
        return leg

    def _spec(self, now: int, choice: Choice, leg: Leg) -> SequenceSpec:
        return sequence_spec(self.accepted, self.gateway, choice, leg.sequence_id, now)
