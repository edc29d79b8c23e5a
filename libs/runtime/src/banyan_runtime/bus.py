"""The event seam: topics of records, order kept per producer, delivered at least once.

The contract is what Kafka and Valkey Streams both give: broadcast cursors and bounded retention;
no consumer groups, no commits, no compaction. A restart is a snapshot plus the tail. Publishing
never waits: a full buffer drops the record, which leaves a gap in the producer's seq.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from banyan.v1 import events_pb2
from banyan_runtime.clock import Clock

REQUEST_EVENTS = "request.events"
WORKER_EVENTS = "worker.events"
KV_EVENTS = "kv.events"
SCALE_EVENTS = "scale.events"
TOPICS = (REQUEST_EVENTS, WORKER_EVENTS, KV_EVENTS, SCALE_EVENTS)


Headers = tuple[tuple[str, bytes], ...]
"""What travels beside a record's value, such as its trace context; a name may come once."""


class Since(StrEnum):
    START = "start"  # the oldest record that is still retained
    TAIL = "tail"  # only what is published after the subscription is live


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    cursor: str
    key: str
    value: bytes
    headers: Headers = ()


class Bus(Protocol):
    def publish(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> bool:
        """Queue a record. False: the bounded buffer was full and the record is lost."""
        ...

    def subscribe(self, topics: Sequence[str], since: Since) -> AsyncGenerator[Record, None]:
        """Records of these topics, those of one key in order, until closed.

        Survives a server that goes away: it reconnects with bounded back-off and goes on after
        the last record that it yielded.
        """
        ...

    async def close(self) -> None:
        """Send what is buffered, within a bound, and let go."""
        ...


class EventProducer:
    """One producer's voice: stamps (producer, epoch, seq, time) and never blocks.

    Seq counts per topic, so that a consumer of one topic can tell a gap; a dropped event still
    uses up its seq.
    """

    def __init__(self, bus: Bus, clock: Clock, producer: str, epoch: int) -> None:
        self._bus = bus
        self._clock = clock
        self._producer = producer
        self._epoch = epoch
        self._seqs = dict.fromkeys(TOPICS, 0)
        self.num_dropped = 0

    def emit(self, topic: str, event: events_pb2.Event, headers: Headers = ()) -> None:
        """Publish `event`, whose payload is set; its envelope is filled in here."""
        self._seqs[topic] += 1
        event.producer, event.epoch, event.seq = self._producer, self._epoch, self._seqs[topic]
        event.time_unix_ns = self._clock.unix_ns()
        if not self._bus.publish(topic, self._producer, event.SerializeToString(), headers):
            self.num_dropped += 1
