"""How requests fared, by tenant and model, over the last minutes, in bounded memory.

Time is cut into buckets by the event's wall clock; a figure over a window is the sum of the
buckets that it covers. Past a number of (tenant, model) pairs the rest share the pair "other".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from banyan_core.events import RequestEnded
from banyan_core.sketch import Sketch
from banyan_core.slo import attainment, goodput, tpot_ns
from banyan_core.types import NS_PER_S, Outcome

OTHER = "other"
BUCKET_NS = 10 * NS_PER_S
MAX_BUCKETS = 60
MAX_PAIRS = 32
MAX_LEDGER_PARTS = 32
MAX_WINDOW_NS = BUCKET_NS * MAX_BUCKETS

Pair = tuple[str, str]
"""Tenant and model."""


@dataclass(slots=True)
class Tally:
    """What is counted of one pair in one bucket, or in a sum of buckets."""

    outcomes: dict[Outcome, int] = field(default_factory=dict)
    num_judged: int = 0
    num_met: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_recoveries: int = 0
    ledger_ns: dict[str, int] = field(default_factory=dict)
    ttft: Sketch = field(default_factory=Sketch)
    itl: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    e2e: Sketch = field(default_factory=Sketch)

    def add(self, ended: RequestEnded, met: bool | None) -> None:
        """Count one ended request; latencies of finished requests only."""
        self.outcomes[ended.outcome] = self.outcomes.get(ended.outcome, 0) + 1
        self.num_judged += met is not None
        self.num_met += met is True
        self.num_prompt_tokens += ended.num_prompt_tokens
        self.num_cached_tokens += ended.num_cached_tokens
        self.num_output_tokens += ended.num_output_tokens
        self.num_recoveries += ended.num_recoveries
        for part, duration in ended.ledger:
            self._add_ledger(part, duration)
        if ended.outcome is Outcome.FINISHED:
            self._add_latencies(ended)

    def _add_latencies(self, ended: RequestEnded) -> None:
        self.e2e.add(ended.e2e_ns)
        if ended.ttft_ns is not None:
            self.ttft.add(ended.ttft_ns)
        tpot = tpot_ns(ended.ttft_ns, ended.e2e_ns, ended.num_output_tokens)
        if tpot is not None:
            self.tpot.add(tpot)
        for gap in ended.itl_ns:
            self.itl.add(gap)

    def _add_ledger(self, part: str, duration: int) -> None:
        known = part in self.ledger_ns or len(self.ledger_ns) < MAX_LEDGER_PARTS
        name = part if known else OTHER
        self.ledger_ns[name] = self.ledger_ns.get(name, 0) + duration

    def merge(self, other: Tally) -> None:
        """Add everything that `other` counted."""
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.num_judged += other.num_judged
        self.num_met += other.num_met
        self.num_prompt_tokens += other.num_prompt_tokens
        self.num_cached_tokens += other.num_cached_tokens
        self.num_output_tokens += other.num_output_tokens
        self.num_recoveries += other.num_recoveries
        for part, duration in other.ledger_ns.items():
            self._add_ledger(part, duration)
        self.ttft.merge(other.ttft)
        self.itl.merge(other.itl)
        self.tpot.merge(other.tpot)
        self.e2e.merge(other.e2e)


@dataclass(frozen=True, slots=True)
class SloFigures:
    """One pair, or all of them, over a window."""

    tenant: str
    model: str
    window_ns: int
    tally: Tally

    @property
    def attainment(self) -> float | None:
        """Share of judged requests that met all targets; None when none was judged."""
        return attainment(self.tally.num_met, self.tally.num_judged)

    @property
    def goodput(self) -> float:
        """Requests per second that met all targets."""
        return goodput(self.tally.num_met, self.window_ns)


class SloWindows:
    """Buckets of tallies. Times are unix nanoseconds."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Pair, Tally]] = {}
        self._pairs: dict[Pair, None] = {}
        self.num_too_old = 0

    def pair(self, tenant: str, model: str) -> Pair:
        """The pair that these are counted under: their own while there is room."""
        pair = (tenant, model)
        if pair in self._pairs:
            return pair
        if len(self._pairs) >= MAX_PAIRS:
            return (OTHER, OTHER)
        self._pairs[pair] = None
        return pair

    def add(self, time_unix_ns: int, ended: RequestEnded, met: bool | None) -> None:
        """Count a request that ended at this time; one older than all buckets is only counted."""
        number = time_unix_ns // BUCKET_NS
        newest = max(self._buckets, default=number)
        if number <= newest - MAX_BUCKETS:
            self.num_too_old += 1
            return
        bucket = self._buckets.setdefault(number, {})
        bucket.setdefault(self.pair(ended.tenant, ended.model), Tally()).add(ended, met)
        self._drop_before(max(newest, number) - MAX_BUCKETS + 1)

    def _drop_before(self, first: int) -> None:
        gone = [number for number in self._buckets if number < first]
        if not gone:
            return
        for number in gone:
            del self._buckets[number]
        held = {pair for bucket in self._buckets.values() for pair in bucket}
        self._pairs = {pair: None for pair in self._pairs if pair in held}

    def figures(self, now_unix_ns: int, window_ns: int) -> tuple[SloFigures, list[SloFigures]]:
        """All requests together, then each pair in order of name, that ended in the window.

        The window ends now and is rounded up to whole buckets, at most `MAX_WINDOW_NS`.
        """
        num_buckets = min(max(1, -(-window_ns // BUCKET_NS)), MAX_BUCKETS)
        newest = now_unix_ns // BUCKET_NS
        sums: dict[Pair, Tally] = {}
        for number in sorted(self._buckets):
            if newest - num_buckets < number <= newest:
                for pair, tally in self._buckets[number].items():
                    sums.setdefault(pair, Tally()).merge(tally)
        total = Tally()
        for tally in sums.values():
            total.merge(tally)
        covered_ns = (num_buckets - 1) * BUCKET_NS + now_unix_ns % BUCKET_NS
        span = max(covered_ns, 1)
        each = [SloFigures(pair[0], pair[1], span, sums[pair]) for pair in sorted(sums)]
        return SloFigures("*", "*", span, total), each
