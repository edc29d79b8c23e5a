"""Where a request's time went: a partition of the gateway's time, part by part.

At any instant between reception and end the request is in exactly one stage. Leaving a stage
splits it into parts by what the workers reported: their clocks are never compared with ours,
only durations are taken. What no report explains of a worker's stage is transit, the wire and
the event loops at both ends. So the parts always add up to the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from banyan_core.types import SequenceFigures


class Stage(StrEnum):
    """What the request is waiting for."""

    TOKENIZE = "tokenize"  # parse, template, tokenise, hash
    QUEUE = "queue"  # no worker would take it, or no router answered
    PLACE = "place"  # a router's answer
    DISPATCH = "dispatch"  # a worker's promise
    PREFILL = "prefill"  # the first token of this placement
    HANDOVER = "handover"  # the first token of the decode worker
    DECODE = "decode"  # the end
    OTHER_CHOICES = "other_choices"  # the first choice has ended, others have not


PARTS = (
    "tokenize",
    "queue",
    "place",
    "dispatch",
    "prefill_fetch",
    "prefill_queue",
    "prefill_compute",
    "prefill_transit",
    "handover",
    "decode_queue",
    "decode_compute",
    "decode_transit",
    "other_choices",
)

NOTHING_DONE = SequenceFigures()
MAX_VISITS = 64
"""Of stages, that are remembered in their order; one more for each loss and each wait."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A stage that the request was in, from one instant to another."""

    stage: Stage
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class Ledger:
    """Durations in ns by part; the open stage began at `since`."""

    since: int
    stage: Stage = Stage.TOKENIZE
    parts: dict[str, int] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    _at_entry: SequenceFigures = NOTHING_DONE

    def move(
        self,
        stage: Stage,
        now: int,
        figures: SequenceFigures | None = None,
        asked_ns: int | None = None,
    ) -> None:
        """Leave the open stage for `stage`.

        `figures` are the latest of the worker whose news ends the open stage, `asked_ns` is when
        it was asked: what it does not explain of the time since then was the way there and back.
        """
        done = figures or NOTHING_DONE
        left = now - self.since
        if self.stage is Stage.PREFILL:
            self._split_prefill(left, done)
        elif self.stage is Stage.HANDOVER:
            explained = done.compute_ns + done.queue_ns + done.fetch_ns
            away = 0 if asked_ns is None else now - asked_ns - explained
            left = self._take("decode_compute", done.compute_ns, left)
            left = self._take("decode_queue", done.queue_ns, left)
            left = self._take("decode_transit", away, left)
            self._add("handover", left)
        elif self.stage is Stage.DECODE:
            left = self._take("decode_compute", done.compute_ns - self._at_entry.compute_ns, left)
            left = self._take("decode_queue", done.queue_ns - self._at_entry.queue_ns, left)
            self._add("decode_transit", left)
        else:
            self._add(self.stage.value, left)
        if now > self.since and len(self.visits) < MAX_VISITS:
            self.visits.append(Visit(self.stage, self.since, now))
        self.since, self.stage, self._at_entry = now, stage, done

    def explain_prefill(self, figures: SequenceFigures) -> None:
        """The prefill worker's figures came after its token, which another worker had passed on."""
        self._split_prefill(self.parts.pop("prefill_transit", 0), figures)

    def _split_prefill(self, left: int, done: SequenceFigures) -> None:
        left = self._take("prefill_compute", done.compute_ns, left)
        left = self._take("prefill_fetch", done.fetch_ns, left)
        left = self._take("prefill_queue", done.queue_ns, left)
        self._add("prefill_transit", left)

    def _take(self, part: str, duration: int, left: int) -> int:
        taken = max(0, min(duration, left))
        self._add(part, taken)
        return left - taken

    def _add(self, part: str, duration: int) -> None:
        if duration:
            self.parts[part] = self.parts.get(part, 0) + duration

    def entries(self) -> tuple[tuple[str, int], ...]:
        """Parts in the order of a request's life; zero parts are left out."""
        return tuple((part, self.parts[part]) for part in PARTS if part in self.parts)
