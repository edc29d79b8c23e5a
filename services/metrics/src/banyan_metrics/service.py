"""The metrics service: listens to every topic and folds it into figures.

It only reads, and no request needs it. It starts at the oldest retained record, so that its
windows are whole again after a restart; Prometheus' counters take only what happened since the
start, because a replay would look like a burst to `rate()`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from banyan.v1 import events_pb2
from banyan_core.events import Event, Heard, RequestEnded, ScaleDecided, WorkerAlive, WorkerGone
from banyan_core.request_fold import BusHeard, Closed, Open, RequestFact, RequestFold
from banyan_core.slo import SloTable, met_slo
from banyan_core.slo_windows import SloFigures, SloWindows
from banyan_metrics.exposition import RequestExposition
from banyan_metrics.state_collector import StateCollector
from banyan_metrics.workers import WorkerFigures, WorkerTable
from banyan_runtime.bus import REQUEST_EVENTS, TOPICS, Bus, Record, Since
from banyan_runtime.clock import Clock
from banyan_runtime.event_codec import event_from_pb
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump, Recorder
from banyan_runtime.trace_context import trace_of
from banyan_runtime.tracing import NO_TRACING, Kind, Tracing

MAX_RECENT = 500
MAX_SCALE_DECISIONS = 200
MAX_PRODUCERS = 5_000
_RECORDS_PER_TURN = 256
_HEARD = {
    "messaging.operation.name": "process",
    "messaging.operation.type": "process",
    "messaging.destination.name": REQUEST_EVENTS,
}


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """An ended request and the verdict on it."""

    gateway_id: str
    time_unix_ns: int
    ended: RequestEnded
    told: bool
    met: bool | None


@dataclass(frozen=True, slots=True)
class ScaleRecord:
    time_unix_ns: int
    decided: ScaleDecided


class MetricsService:
    """The fold and its subscription; `http.py` shows it, and it runs without as well."""

    def __init__(
        self,
        metrics_id: str,
        bus: Bus,
        clock: Clock,
        targets: SloTable,
        registry: CollectorRegistry,
        logger: logging.Logger,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._tracing = tracing
        self.metrics_id = metrics_id
        self._bus = bus
        self._clock = clock
        self._targets = targets
        self._logger = logger
        self._fold = RequestFold()
        self._pump: Pump[RequestFact, Closed] = Pump(self._fold, clock, self._close, recorder)
        self._windows = SloWindows()
        self._workers = WorkerTable()
        self._exposition = RequestExposition(registry)
        self._recent: deque[RecentRequest] = deque(maxlen=MAX_RECENT)
        self._scale: deque[ScaleRecord] = deque(maxlen=MAX_SCALE_DECISIONS)
        self._heard: dict[tuple[str, str], Heard] = {}
        self._tasks = Tasks()
        self._started_unix_ns = 0
        self._heard_at: int | None = None
        self.num_unreadable = 0
        self.is_ready = False
        registry.register(StateCollector(self))

    async def start(self) -> None:
        """Begin to listen; returns at once, a bus that is away is waited for."""
        self._started_unix_ns = self._clock.unix_ns()
        self._tasks.spawn("metrics pump", self._pump.run())
        self._tasks.spawn("metrics events", self._listen())
        self.is_ready = True

    async def stop(self, grace_s: float) -> None:
        """Stop listening. Nothing is in flight here, so there is nothing to wait for."""
        self.is_ready = False
        await self._tasks.cancel_all()

    # ------------------------------------------------------------ events in

    async def _listen(self) -> None:
        num_records = 0
        async for record in self._bus.subscribe(TOPICS, Since.START):
            self._take(record)
            num_records += 1
            if num_records % _RECORDS_PER_TURN == 0:
                await asyncio.sleep(0)  # a long replay must not starve the pump and HTTP

    def _take(self, record: Record) -> None:
        self._heard_at = self._clock.now_ns()
        try:
            message = events_pb2.Event.FromString(record.value)
            event = event_from_pb(message)
        except (DecodeError, ValueError) as error:
            self.num_unreadable += 1
            self._logger.warning(
                "unreadable event", extra={"topic": record.topic, "why": f"{error}"}
            )
            return
        is_news = self._note(record.topic, message)
        if event is not None and record.topic == REQUEST_EVENTS:
            if record.headers and event.time_unix_ns >= self._started_unix_ns:
                self._trace(record, event)
            self._pump.feed(event)  # the fold drops duplicates itself, so that a replay can
            return
        self._pump.feed(BusHeard())
        if event is not None and is_news:
            self._apply(event)

    def _trace(self, record: Record, event: Event) -> None:
        """That the end of a request was heard here; not when a restart hears it once more."""
        if not isinstance(event.payload, RequestEnded):
            return
        parent = trace_of(record.headers)
        span = self._tracing.under(parent, f"process {record.topic}", _HEARD, Kind.CONSUMER)
        if span is not None:
            span.set({"banyan.request.id": event.payload.request_id})
            span.end()

    def _note(self, topic: str, message: events_pb2.Event) -> bool:
        key = (topic, message.producer)
        if key not in self._heard and len(self._heard) >= MAX_PRODUCERS:
            del self._heard[next(iter(self._heard))]
        return self._heard.setdefault(key, Heard()).is_news(message.epoch, message.seq)

    def _apply(self, event: Event) -> None:
        if isinstance(event.payload, WorkerAlive | WorkerGone):
            self._workers.apply(self._clock.now_ns(), event.payload)
        elif isinstance(event.payload, ScaleDecided):
            self._scale.append(ScaleRecord(event.time_unix_ns, event.payload))

    def _close(self, closed: Closed) -> None:
        ended = closed.ended
        met = met_slo(ended, self._targets.target(ended.tenant, ended.model))
        met = met if closed.told else None
        # A producer whose clock runs ahead must not push everybody else out of the windows.
        time = min(closed.time_unix_ns, self._clock.unix_ns())
        self._recent.append(RecentRequest(closed.gateway_id, time, ended, closed.told, met))
        is_new = time >= self._started_unix_ns
        if not closed.told:
            if is_new:
                self._exposition.count_unheard(ended)
            return
        self._windows.add(time, ended, met)
        if is_new:
            self._exposition.count(ended, met)

    # ------------------------------------------------------------ figures out

    def slo(self, window_ns: int) -> tuple[SloFigures, list[SloFigures]]:
        """All requests, then each (tenant, model), that ended in the last `window_ns`."""
        return self._windows.figures(self._clock.unix_ns(), window_ns)

    def workers(self) -> list[WorkerFigures]:
        return self._workers.figures(self._clock.now_ns())

    def scale_decisions(self) -> list[ScaleRecord]:
        """Newest first."""
        return list(reversed(self._scale))

    def recent(self) -> list[RecentRequest]:
        """Ended requests, newest first."""
        return list(reversed(self._recent))

    def open_requests(self) -> list[Open]:
        """Accepted requests without an end, oldest first."""
        return self._fold.open_requests()

    def missing_events(self) -> dict[str, int]:
        """Per topic, how many numbered events never came."""
        missing = dict.fromkeys(TOPICS, 0)
        for (topic, _), heard in self._heard.items():
            missing[topic] += heard.num_missing
        return missing

    @property
    def num_late_ends(self) -> int:
        """Ends that came after their request had been given another one."""
        return self._fold.num_late_ends

    @property
    def silence_s(self) -> float | None:
        """How long the bus has said nothing; None when it never did."""
        if self._heard_at is None:
            return None
        return (self._clock.now_ns() - self._heard_at) / 1e9
