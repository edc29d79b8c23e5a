"""One suite for all buses: order per producer, tail, retention, outages.

Here on Valkey Streams and the twin; tests/kafka runs it on a real broker.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from banyan.v1 import events_pb2
from banyan_runtime.bus import KV_EVENTS, WORKER_EVENTS, Bus, EventProducer, Record, Since
from banyan_runtime.clock import SystemClock
from banyan_runtime.memory_bus import MemoryBroker, MemoryBus
from banyan_runtime.redis_client import call
from banyan_runtime.valkey_bus import ValkeyBus

from .conftest import Eventually, RestartableValkey

_PREFIXES = itertools.count()


@dataclass
class Buses:
    """Makes buses that share one broker, and takes that broker down and up."""

    make: Callable[..., Bus]
    down: Callable[[], None]
    up: Callable[[], None]
    made: list[Bus] = field(default_factory=list)

    def __call__(self, **options: Any) -> Bus:
        self.made.append(self.make(**options))
        return self.made[-1]


def _memory(max_records: int) -> Buses:
    broker = MemoryBroker(max_records)
    return Buses(
        lambda **options: MemoryBus(broker, **options),
        lambda: broker.down(lose_records=True),
        broker.up,
    )


def _valkey(url: str, max_records: int) -> Buses:
    def never() -> None:
        raise AssertionError("the session's server stays up: use the `outage` fixture")

    prefix = f"bus{next(_PREFIXES)}:"
    made = partial(ValkeyBus, url, prefix=prefix, max_records=max_records)
    return Buses(made, never, never)


@pytest.fixture(params=["memory", "valkey"])
async def buses(request: pytest.FixtureRequest) -> AsyncIterator[Buses]:
    if request.param == "memory":
        made = _memory(100_000)
    else:
        made = _valkey(request.getfixturevalue("valkey_url"), 100_000)
    yield made
    for bus in made.made:
        await bus.close()


@pytest.fixture(params=["memory", "valkey"])
async def outage(request: pytest.FixtureRequest) -> AsyncIterator[Buses]:
    """Buses on a broker of their own, which goes down without keeping its records."""
    if request.param == "memory":
        made = _memory(100_000)
    else:
        server: RestartableValkey = request.getfixturevalue("own_valkey")
        made = Buses(lambda **options: ValkeyBus(server.url, **options), server.down, server.up)
    yield made
    for bus in made.made:
        await bus.close()


class Listener:
    """Collects what a subscription yields, in a task."""

    def __init__(self, bus: Bus, topics: list[str], since: Since) -> None:
        self.records: list[Record] = []
        self._task = asyncio.create_task(self._run(bus, topics, since))

    async def _run(self, bus: Bus, topics: list[str], since: Since) -> None:
        async with aclosing(bus.subscribe(topics, since)) as records:
            async for record in records:
                self.records.append(record)

    @property
    def values(self) -> list[bytes]:
        return [record.value for record in self.records]

    async def stop(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


async def test_records_come_in_order_with_topic_and_key(
    buses: Buses, eventually: Eventually
) -> None:
    bus = buses()
    for i in range(1000):
        assert bus.publish(WORKER_EVENTS if i % 2 else KV_EVENTS, f"p{i % 3}", b"%d" % i)
    listener = Listener(buses(), [KV_EVENTS, WORKER_EVENTS], Since.START)
    await eventually(lambda: len(listener.records) == 1000)
    for topic, parity in ((KV_EVENTS, 0), (WORKER_EVENTS, 1)):
        for key in range(3):
            ours = [r for r in listener.records if (r.topic, r.key) == (topic, f"p{key}")]
            sent = [b"%d" % i for i in range(parity, 1000, 2) if i % 3 == key]
            assert [record.value for record in ours] == sent
    assert len({(record.topic, record.cursor) for record in listener.records}) == 1000
    await listener.stop()


async def test_headers_travel_beside_the_value(buses: Buses, eventually: Eventually) -> None:
    bus = buses()
    headers = (("traceparent", b"00-abc-def-01"), ("raw", b"\x00\xff"))
    producer = EventProducer(bus, SystemClock(), "w1", epoch=7)
    producer.emit(KV_EVENTS, events_pb2.Event(), headers)
    bus.publish(KV_EVENTS, "w1", b"bare")
    bus.publish(KV_EVENTS, "w1", b"empty", (("none", b""),))
    listener = Listener(buses(), [KV_EVENTS], Since.START)
    await eventually(lambda: len(listener.records) == 3)
    assert [record.headers for record in listener.records] == [headers, (), (("none", b""),)]
    await listener.stop()


async def test_every_subscriber_gets_every_record(buses: Buses, eventually: Eventually) -> None:
    bus = buses()
    listeners = [Listener(buses(), [KV_EVENTS], Since.START) for _ in range(3)]
    for i in range(10):
        bus.publish(KV_EVENTS, "p", b"%d" % i)
    await eventually(lambda: all(len(each.records) == 10 for each in listeners))
    for listener in listeners:
        await listener.stop()


async def test_tail_starts_late_and_then_loses_nothing(
    buses: Buses, eventually: Eventually
) -> None:
    bus = buses()
    bus.publish(KV_EVENTS, "p", b"old")
    await eventually_published(buses, KV_EVENTS, b"old", eventually)
    listener = Listener(buses(), [KV_EVENTS, WORKER_EVENTS], Since.TAIL)
    number = 0
    while len(listener.records) < 20:
        number += 1
        assert number < 5000
        bus.publish(KV_EVENTS, "p", b"%d" % number)
        await asyncio.sleep(0.001)
    first = int(listener.values[0])
    assert listener.values == [b"%d" % i for i in range(first, first + len(listener.values))]
    await listener.stop()


async def eventually_published(
    buses: Buses, topic: str, value: bytes, eventually: Eventually
) -> None:
    listener = Listener(buses(), [topic], Since.START)
    await eventually(lambda: value in listener.values)
    await listener.stop()


async def test_a_full_buffer_drops_and_says_so(buses: Buses, eventually: Eventually) -> None:
    bus = buses(max_buffered=10)
    taken = [bus.publish(KV_EVENTS, "p", b"%d" % i) for i in range(15)]
    assert taken == [True] * 10 + [False] * 5
    listener = Listener(buses(), [KV_EVENTS], Since.START)
    await eventually(lambda: len(listener.records) == 10)
    assert bus.publish(KV_EVENTS, "p", b"after")
    await eventually(lambda: listener.values == [*(b"%d" % i for i in range(10)), b"after"])
    await listener.stop()


async def test_a_dropped_event_leaves_a_gap_in_seq(buses: Buses, eventually: Eventually) -> None:
    bus = buses(max_buffered=2)
    producer = EventProducer(bus, SystemClock(), "w1", epoch=7)
    for _ in range(4):
        producer.emit(KV_EVENTS, events_pb2.Event(blocks_stored=events_pb2.BlocksStored()))
    listener = Listener(buses(), [KV_EVENTS], Since.START)
    await eventually(lambda: len(listener.records) == 2)
    producer.emit(KV_EVENTS, events_pb2.Event(blocks_stored=events_pb2.BlocksStored()))
    await eventually(lambda: len(listener.records) == 3)
    events = [events_pb2.Event.FromString(value) for value in listener.values]
    assert [(e.producer, e.epoch, e.seq) for e in events] == [("w1", 7, i) for i in (1, 2, 5)]
    assert producer.num_dropped == 2
    await listener.stop()


async def test_retention_is_bounded(valkey_url: str, eventually: Eventually) -> None:
    for made in (_memory(500), _valkey(valkey_url, 500)):
        bus = made()
        for i in range(3000):
            assert bus.publish(KV_EVENTS, "p", b"%d" % i)
        await eventually_published(made, KV_EVENTS, b"2999", eventually)
        listener = Listener(made(), [KV_EVENTS], Since.START)
        await eventually(lambda seen=listener: seen.values[-1:] == [b"2999"])
        assert 500 <= len(listener.records) < 1000
        await listener.stop()
        for each in made.made:
            await each.close()


async def test_close_sends_what_is_buffered(buses: Buses, eventually: Eventually) -> None:
    bus = buses()
    for i in range(50):
        bus.publish(KV_EVENTS, "p", b"%d" % i)
    await bus.close()
    assert not bus.publish(KV_EVENTS, "p", b"late")
    listener = Listener(buses(), [KV_EVENTS], Since.START)
    await eventually(lambda: listener.values == [b"%d" % i for i in range(50)])
    await listener.stop()


async def test_publisher_and_subscriber_survive_an_outage(
    outage: Buses, eventually: Eventually
) -> None:
    bus = outage(max_buffered=20)
    listener = Listener(outage(), [KV_EVENTS], Since.START)
    bus.publish(KV_EVENTS, "p", b"before")
    await eventually(lambda: listener.values == [b"before"])
    outage.down()
    taken = [bus.publish(KV_EVENTS, "p", b"%d" % i) for i in range(30)]
    # The sender may not have heard yet that "before" has arrived, which takes one place.
    num_taken = sum(taken)
    assert num_taken in (19, 20)
    assert taken == [True] * num_taken + [False] * (30 - num_taken)
    await asyncio.sleep(0.3)
    assert listener.values == [b"before"]
    outage.up()
    await eventually(lambda: len(listener.records) > num_taken)
    # At least once: a record may come again, but never out of order.
    distinct = list(dict.fromkeys(listener.values))
    assert distinct == [b"before", *(b"%d" % i for i in range(num_taken))]
    await listener.stop()


async def test_a_cancelled_subscriber_always_ends(buses: Buses, eventually: Eventually) -> None:
    bus, reader = buses(), buses()
    for i in range(60):
        bus.publish(KV_EVENTS, "p", b"%d" % i)
        listener = Listener(reader, [KV_EVENTS], Since.START)
        # At once, so that the cancel often comes in the turn of the next request.
        async with asyncio.timeout(60):
            while len(listener.records) <= i:  # noqa: ASYNC110  # turn by turn, on purpose
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await listener.stop()


async def test_close_is_bounded_when_the_broker_is_down(outage: Buses) -> None:
    bus = outage()
    outage.down()
    bus.publish(KV_EVENTS, "p", b"lost")
    async with asyncio.timeout(4):
        await bus.close()


@pytest.mark.parametrize("url", ["kafka:nope", "h:6379", "redis://h:99999"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        ValkeyBus(url)


async def test_a_command_that_fails_when_it_is_cancelled_is_no_news() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def fail() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise ConnectionError("nobody is there") from None

    reader = asyncio.ensure_future(call(fail()))
    await asyncio.sleep(0.01)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    del reader
    await asyncio.sleep(0.01)  # the loop forgets the command, too
    gc.collect()
    assert told == []
