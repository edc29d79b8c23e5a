"""One subscription to Kafka topics: every partition, no group, positions of our own.

A group would share records between readers and forget them on a rebalance; the bus is a broadcast.
So positions are kept here and outlive the client, which is made anew when it fails: aiokafka only
remembers the brokers of its last metadata, and stays away for ever when those are gone for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import OffsetOutOfRangeError  # type: ignore[import-untyped]

from banyan_runtime.bus import Record, Since
from banyan_runtime.kafka_outage import Outage
from banyan_runtime.kafka_topics import KafkaTopics

_BATCH = 256
_WAIT_S = 1.0
_OPEN_TIMEOUT_S = 15.0
_REFRESH_S = 10.0  # how soon a new partition is seen, and brokers that do not answer are noticed
_PROBE_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 2.0


class KafkaReader:
    """The positions of one subscription: the next offset of each partition."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        topics: KafkaTopics,
        prefix: str,
        logger: logging.Logger,
    ) -> None:
        self._arguments = arguments
        self._topics = topics
        self._prefix = prefix
        self._outage = Outage(logger, "event reader")
        self._next: dict[TopicPartition, int] = {}
        self._refresh_at = 0.0

    async def records(
        self, topics: Sequence[str], since: Since, is_closed: Callable[[], bool]
    ) -> AsyncGenerator[Record, None]:
        names = [self._prefix + topic for topic in topics]
        while not is_closed():
            consumer = self._consumer()
            failure: BaseException | None = None
            try:
                await self._open(consumer, names, since)
                self._outage.ended()
                while not is_closed():
                    for record in await self._read(consumer, names):
                        yield record
            except Exception as error:  # aiokafka's assertions, too: this must not end
                failure = error
            finally:
                await _close(consumer)
            if failure is not None:
                await self._outage.wait_after(failure)

    def _consumer(self) -> Any:
        return AIOKafkaConsumer(
            **self._arguments,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            metadata_max_age_ms=round(_REFRESH_S * 1000),
        )

    async def _open(self, consumer: Any, names: Sequence[str], since: Since) -> None:
        async with asyncio.timeout(_OPEN_TIMEOUT_S):
            counts = await self._topics.ensure(names)
            found = {TopicPartition(name, i) for name in names for i in range(counts[name])}
            await consumer.start()
            is_first = not self._next
            self._next = {at: offset for at, offset in self._next.items() if at in found}
            await self._assign(consumer, found, since if is_first else Since.START)

    async def _assign(self, consumer: Any, found: set[TopicPartition], since: Since) -> None:
        """Read `found`; what is new among it from the oldest record or, at TAIL, from now on."""
        new = sorted(found - self._next.keys())
        if new:
            ask = consumer.end_offsets if since is Since.TAIL else consumer.beginning_offsets
            self._next |= await ask(new)
        consumer.assign(list(self._next))
        for at, offset in self._next.items():
            consumer.seek(at, offset)

    async def _read(self, consumer: Any, names: Sequence[str]) -> list[Record]:
        now = asyncio.get_running_loop().time()
        if now >= self._refresh_at:
            await self._refresh(consumer, names)
            self._refresh_at = now + _REFRESH_S
        return [self._seen(fetched) for fetched in await self._fetch(consumer)]

    def _seen(self, fetched: Any) -> Record:
        self._next[TopicPartition(fetched.topic, fetched.partition)] = fetched.offset + 1
        return Record(
            fetched.topic.removeprefix(self._prefix),
            f"{fetched.partition}:{fetched.offset}",
            (fetched.key or b"").decode(errors="replace"),
            fetched.value or b"",
            tuple(fetched.headers),
        )

    async def _fetch(self, consumer: Any) -> list[Any]:
        try:
            fetched = await consumer.getmany(timeout_ms=round(_WAIT_S * 1000), max_records=_BATCH)
        except OffsetOutOfRangeError as error:
            # Retention overtook us, or the topic began anew: what is left, from its oldest on.
            lost = list(error.args[0])
            self._next |= await consumer.beginning_offsets(lost)
            for at in lost:
                consumer.seek(at, self._next[at])
            return []
        return [record for records in fetched.values() for record in records]

    async def _refresh(self, consumer: Any, names: Sequence[str]) -> None:
        """See partitions that were added, and notice when nobody answers."""
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            found = {
                TopicPartition(name, number)
                for name in names
                for number in consumer.partitions_for_topic(name) or ()
            }
            if found - self._next.keys():
                await self._assign(consumer, found | self._next.keys(), Since.START)
            await consumer.end_offsets(list(self._next))


async def _close(consumer: Any) -> None:
    """Close it for sure: stop() is cancelled by the fetches that it cancels, and ends half-way."""
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait((stopping,), timeout=_CLOSE_TIMEOUT_S)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    await consumer._client.close()
