"""The bus on Kafka: a buffer of our own in front of an idempotent producer, readers without groups.

aiokafka's `send` waits for metadata and for room, so `publish` only fills a bounded buffer. One
task sends it in windows: one batch per partition, and the next window when all are acknowledged.
What came in meanwhile is the next window, so batches grow with load and a lonely record does not
linger. The producer retries a window by itself and loses, repeats and reorders nothing. When it
gives up, or is stuck, a new one sends the window again: a record may come twice (its seq tells).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]  # no types
from aiokafka.errors import (  # type: ignore[import-untyped]
    CorruptRecordException,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]

from banyan_runtime.bus import Headers, Record, Since
from banyan_runtime.kafka_access import KafkaAccess, client_arguments, kafka_servers
from banyan_runtime.kafka_outage import Outage
from banyan_runtime.kafka_reader import KafkaReader
from banyan_runtime.kafka_topics import KafkaTopics, TopicSpec

_WINDOW = 256
_WINDOW_BYTES = 512 << 10  # brokers take batches up to 1 MiB unless they are told otherwise
_PATIENCE_S = 30.0  # for one window; then a new producer asks the servers of the URL again
_CLOSE_TIMEOUT_S = 2.0  # for what is buffered
_DROP_TIMEOUT_S = 1.0
_REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError, CorruptRecordException)
"""What a broker says about a record that it will never take."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    topic: str
    key: bytes
    value: bytes
    headers: Headers

    @property
    def num_bytes(self) -> int:
        headers = sum(len(name) + len(word) for name, word in self.headers)
        return len(self.key) + len(self.value) + headers


class KafkaBus:
    """One process's access to the bus. Nothing connects before it is used.

    `topics` are made when they do not exist. Raises ValueError when `url` is none, SettingsError
    when `access` cannot work.
    """

    def __init__(
        self,
        url: str,
        access: KafkaAccess = KafkaAccess(),  # noqa: B008  # frozen
        topics: Sequence[TopicSpec] = (),
        *,
        logger: logging.Logger,
        prefix: str = "",
        max_buffered: int = 10_000,
        max_buffered_bytes: int = 32 << 20,
    ) -> None:
        self._arguments = client_arguments(kafka_servers(url), access)
        self._topics = KafkaTopics(self._arguments, topics, prefix, logger)
        self._logger = logger
        self._prefix = prefix
        self._max_buffered = max_buffered
        self._max_buffered_bytes = max_buffered_bytes
        self._buffer: deque[_Outgoing] = deque()
        self._num_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._producer: Any = None
        self._partition = DefaultPartitioner()
        self._is_closed = False

    def publish(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> bool:
        record = _Outgoing(self._prefix + topic, key.encode(), value, headers)
        if self._is_closed or not self._has_room(record.num_bytes):
            return False
        self._buffer.append(record)
        self._num_bytes += record.num_bytes
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send(), name="bus sender")
        return True

    def _has_room(self, num_bytes: int) -> bool:
        if num_bytes > _WINDOW_BYTES or len(self._buffer) >= self._max_buffered:
            return False
        return self._num_bytes + num_bytes <= self._max_buffered_bytes

    async def _send(self) -> None:
        """Hand on what is buffered, then end; `publish` starts it again."""
        outage = Outage(self._logger, "event sender")
        num_alone = 0  # how many records go one by one, to find the one that is refused
        while self._buffer:
            window = self._window(1 if num_alone else _WINDOW)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._deliver(window)
            except _REFUSED as error:
                await self._drop_producer()
                if len(window) > 1:
                    num_alone = len(window)
                    continue
                self._logger.error("Kafka refused an event", extra={"reason": repr(error)})
            except Exception as error:  # aiokafka's assertions, too: the sender must not end
                await self._drop_producer()
                await outage.wait_after(error)
                continue
            outage.ended()
            num_alone = max(num_alone - 1, 0)
            for record in window:
                self._buffer.popleft()
                self._num_bytes -= record.num_bytes

    def _window(self, limit: int) -> list[_Outgoing]:
        """The next records; at least one."""
        window: list[_Outgoing] = []
        num_bytes = 0
        for record in islice(self._buffer, limit):
            num_bytes += record.num_bytes
            if window and num_bytes > _WINDOW_BYTES:
                break
            window.append(record)
        return window

    async def _deliver(self, window: Sequence[_Outgoing]) -> None:
        """Send one batch per partition and wait until all are acknowledged."""
        if self._producer is None:
            await self._connect()
        producer = self._producer
        topics = {record.topic for record in window}
        partitions = {topic: sorted(await producer.partitions_for(topic)) for topic in topics}
        batches: dict[TopicPartition, Any] = {}
        for record in window:
            number = self._partition(record.key, partitions[record.topic], ())
            to = TopicPartition(record.topic, number)
            batch = batches.get(to) or batches.setdefault(to, producer.create_batch())
            added = batch.append(
                timestamp=None, key=record.key, value=record.value, headers=list(record.headers)
            )
            assert added is not None, "a window fits into a batch"
        futures = [
            await producer.send_batch(batch, to.topic, partition=to.partition)
            for to, batch in batches.items()
        ]
        await asyncio.gather(*futures)

    async def _connect(self) -> None:
        self._producer = AIOKafkaProducer(
            **self._arguments,
            enable_idempotence=True,
            acks="all",
            compression_type="lz4",
            max_batch_size=2 * _WINDOW_BYTES,
        )
        await self._topics.ensure()
        await self._producer.start()

    async def _drop_producer(self) -> None:
        """Let go of the producer, also of what it has not delivered.

        Its own `stop` waits until everything is delivered: for ever, without brokers. So its parts
        are ended one by one, and it is told that it is closed, or it would warn.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return
        producer._closed = True
        with contextlib.suppress(Exception):  # whatever becomes of its last requests
            async with asyncio.timeout(_DROP_TIMEOUT_S):
                await producer._sender.close()
        await producer.client.close()

    def subscribe(self, topics: Sequence[str], since: Since) -> AsyncGenerator[Record, None]:
        reader = KafkaReader(self._arguments, self._topics, self._prefix, self._logger)
        return reader.records(topics, since, lambda: self._is_closed)

    async def close(self) -> None:
        if self._sender is not None and not self._sender.done():
            await asyncio.wait((self._sender,), timeout=_CLOSE_TIMEOUT_S)
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._is_closed = True
        await self._drop_producer()
