"""Brokers that restart, move and forget: what was taken arrives, in order per producer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiokafka.admin import (  # type: ignore[import-untyped]  # it ships no types
    AIOKafkaAdminClient,
    NewPartitions,
    RecordsToDelete,
)
from aiokafka.structs import TopicPartition  # type: ignore[import-untyped]
from tests.contract.test_bus import Listener
from tests.kafka.brokers import Broker, cluster
from tests.kafka.conftest import bus_maker, eventually, new_prefix

from banyan_runtime import kafka_bus, kafka_reader
from banyan_runtime.bus import KV_EVENTS, Record, Since
from banyan_runtime.kafka_bus import KafkaBus
from banyan_runtime.kafka_topics import TopicSpec

KEYS = ("gateway-0", "decode-0", "decode-1")


def spec(num_partitions: int = 3, num_replicas: int = 1, **settings: str) -> TopicSpec:
    named = {key.replace("_", "."): value for key, value in settings.items()}
    return TopicSpec(KV_EVENTS, num_partitions, num_replicas, named)


@asynccontextmanager
async def buses(
    url: str, topic: TopicSpec, prefix: str = ""
) -> AsyncIterator[tuple[KafkaBus, KafkaBus]]:
    """One to speak and one to listen."""
    prefix = prefix or new_prefix()
    make = partial(bus_maker(url, prefix, [topic]), max_buffered=100_000)
    async with AsyncExitStack() as closing:
        made = make(), make()
        for bus in made:
            closing.push_async_callback(bus.close)
        yield made


@asynccontextmanager
async def admin_of(broker: Broker) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def heard_more_than(listener: Listener, num_records: int) -> None:
    await eventually(lambda: len(listener.records) > num_records, 120)


class Speaker:
    """Publishes one numbered record after another until it is stopped."""

    def __init__(self, bus: KafkaBus) -> None:
        self.num_taken = 0
        self._bus = bus
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop.is_set():
            key = KEYS[self.num_taken % len(KEYS)]
            assert self._bus.publish(KV_EVENTS, key, b"%d" % self.num_taken)
            self.num_taken += 1
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._stop.set()
        await self._task


def assert_all_in_order(records: Sequence[Record], num_sent: int) -> None:
    """Each producer's records came in order; some perhaps twice."""
    for number, key in enumerate(KEYS):
        heard = list(dict.fromkeys(int(r.value) for r in records if r.key == key))
        assert heard == list(range(number, num_sent, len(KEYS)))


@pytest.mark.timeout(600)
async def test_a_broker_that_crashes_while_records_flow(broker: Broker) -> None:
    async with buses(broker.url, spec()) as (speaking, listening):
        listener = Listener(listening, [KV_EVENTS], Since.START)
        speaker = Speaker(speaking)
        for _ in range(2):
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.down)
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.up)
        await asyncio.sleep(1)
        await speaker.stop()
        await eventually(lambda: len(set(listener.values)) == speaker.num_taken, 120)
        assert_all_in_order(listener.records, speaker.num_taken)
        await listener.stop()


@pytest.mark.timeout(600)
async def test_an_outage_longer_than_the_patience_of_a_producer(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_bus, "_PATIENCE_S", 2.0)
    async with buses(broker.url, spec()) as (speaking, listening):
        listener = Listener(listening, [KV_EVENTS], Since.START)
        speaker = Speaker(speaking)
        await eventually(lambda: len(listener.records) > 100)
        await asyncio.to_thread(broker.down)
        await asyncio.sleep(7)
        await asyncio.to_thread(broker.up)
        await speaker.stop()
        await eventually(lambda: len(set(listener.values)) == speaker.num_taken, 120)
        assert_all_in_order(listener.records, speaker.num_taken)
        await listener.stop()


async def all_replicas_in_sync(brokers: Sequence[Broker]) -> None:
    """Only then may the next one go: two must keep what is acknowledged."""
    async with admin_of(brokers[0]) as admin, asyncio.timeout(120):
        while True:
            topics = await admin.describe_topics()
            in_sync = [len(part["isr"]) for topic in topics for part in topic["partitions"]]
            if in_sync and set(in_sync) == {len(brokers)}:
                return
            await asyncio.sleep(0.2)


@pytest.mark.timeout(600)
async def test_leaders_move_and_brokers_die_one_by_one(kafka_home: Path, tmp_path: Path) -> None:
    brokers = await asyncio.to_thread(cluster, kafka_home, tmp_path, 3)
    url = "kafka://" + ",".join(broker.address for broker in brokers)
    topic = spec(num_replicas=3, min_insync_replicas="2")
    try:
        async with buses(url, topic) as both:
            listener = Listener(both[1], [KV_EVENTS], Since.START)
            speaker = Speaker(both[0])
            await eventually(lambda: len(listener.records) > 100)
            for broker, end in zip(brokers, (Broker.stop, Broker.down, Broker.down), strict=True):
                await asyncio.to_thread(end, broker)
                num_before = len(listener.records)
                # Two of three are left: the records flow without the third.
                await heard_more_than(listener, num_before + 200)
                await asyncio.to_thread(broker.up)
                await all_replicas_in_sync(brokers)
            await speaker.stop()
            await eventually(lambda: len(set(listener.values)) == speaker.num_taken, 120)
            assert_all_in_order(listener.records, speaker.num_taken)
            await listener.stop()
    finally:
        for broker in brokers:
            broker.remove()


@pytest.mark.timeout(600)
async def test_a_bus_that_begins_while_kafka_is_away(broker: Broker) -> None:
    await asyncio.to_thread(broker.down)
    async with buses(broker.url, spec()) as (speaking, listening):
        listener = Listener(listening, [KV_EVENTS], Since.START)
        for i in range(9):
            assert speaking.publish(KV_EVENTS, KEYS[i % 3], b"%d" % i)
        await asyncio.sleep(3)
        await asyncio.to_thread(broker.up)
        await eventually(lambda: len(listener.records) == 9)
        assert_all_in_order(listener.records, 9)
        await listener.stop()


async def test_retention_overtakes_a_reader(broker: Broker) -> None:
    prefix = new_prefix()
    async with buses(broker.url, spec(num_partitions=1), prefix) as (speaking, listening):
        async with aclosing(listening.subscribe([KV_EVENTS], Since.START)) as records:
            speaking.publish(KV_EVENTS, "p", b"first")
            assert (await anext(records)).value == b"first"
            for i in range(5000):
                assert speaking.publish(KV_EVENTS, "p", b"%d" % i + bytes(1000))
            await eventually(lambda: not speaking._buffer)
            async with admin_of(broker) as admin:
                at = TopicPartition(prefix + KV_EVENTS, 0)
                await admin.delete_records({at: RecordsToDelete(before_offset=4900)})
            speaking.publish(KV_EVENTS, "p", b"last")
            seen = [int(r.cursor.partition(":")[2]) async for r in _until(records, b"last")]
        assert len(seen) < 5000  # what was fetched ahead, and what is left
        assert seen == sorted(seen) and seen[-100:] == list(range(4902, 5002))


async def _until(records: AsyncIterator[Record], last: bytes) -> AsyncIterator[Record]:
    async for record in records:
        yield record
        if record.value == last:
            return


async def test_partitions_are_added_under_a_reader(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reader, "_REFRESH_S", 1.0)
    prefix = new_prefix()
    async with buses(broker.url, spec(num_partitions=1), prefix) as (speaking, listening):
        listener = Listener(listening, [KV_EVENTS], Since.TAIL)
        number = 0
        while not listener.records:
            speaking.publish(KV_EVENTS, "p", b"%d" % number)
            number += 1
            await asyncio.sleep(0.05)
        async with admin_of(broker) as admin:
            await admin.create_partitions({prefix + KV_EVENTS: NewPartitions(total_count=8)})
        fresh = bus_maker(broker.url, prefix, ())()  # it sees all eight at once
        for i in range(100):
            assert fresh.publish(KV_EVENTS, f"key-{i}", b"new-%d" % i)
        await eventually(lambda: sum(v.startswith(b"new") for v in listener.values) == 100)
        assert len({r.cursor.partition(":")[0] for r in listener.records}) == 8
        await fresh.close()
        await listener.stop()


async def test_a_record_that_the_broker_refuses_is_lost_alone(broker: Broker) -> None:
    async with buses(broker.url, spec(max_message_bytes="2000")) as (speaking, listening):
        listener = Listener(listening, [KV_EVENTS], Since.START)
        for i in range(20):
            # Noise, which lz4 cannot shrink.
            noise = random.Random(i).randbytes(5000) if i == 10 else b""
            assert speaking.publish(KV_EVENTS, "p", b"%d" % i + noise)
        await eventually(lambda: len(listener.records) == 19)
        assert listener.values == [b"%d" % i for i in range(20) if i != 10]
        await listener.stop()
