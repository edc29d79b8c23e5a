"""The bus on Redis or Valkey Streams: one stream per topic, capped, read by broadcast cursors.

One task sends what was published, in order, in pipelines; a pipeline that failed is sent again
whole, so a record may come twice (its seq tells). It waits a moment for more first: nobody waits
for an event, and a pipeline of many costs both ends hardly more than one of one. Readers use a
connection each, block for less than the socket's timeout, and go on after the last id that they
yielded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from redis.asyncio import Redis

from banyan_runtime.bus import Headers, Record, Since
from banyan_runtime.redis_client import UNREACHABLE, call, connect

_SOCKET_TIMEOUT_S = 3.0
_BLOCK_MS = 1000  # less than the socket's timeout
_BATCH = 256
_LINGER_S = 0.005
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_CLOSE_TIMEOUT_S = 1.0
_HEADER = "h:"  # how the names of the fields begin that carry headers


class ValkeyBus:
    """One process's access to the bus. Nothing connects before it is used.

    Raises ValueError when `url` is none.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "banyan:",
        max_buffered: int = 10_000,
        max_records: int = 100_000,
    ) -> None:
        self._url = url
        self._prefix = prefix
        self._max_buffered = max_buffered
        self._max_records = max_records
        self._buffer: deque[tuple[str, str, bytes, Headers]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._client = connect(url, _SOCKET_TIMEOUT_S)
        self._is_closed = False

    def publish(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> bool:
        if self._is_closed or len(self._buffer) >= self._max_buffered:
            return False
        self._buffer.append((topic, key, value, headers))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send(), name="bus sender")
        return True

    async def _send(self) -> None:
        """Hand on what is buffered, then end; `publish` starts it again."""
        failures = 0
        while self._buffer:
            if len(self._buffer) < _BATCH:
                await asyncio.sleep(_LINGER_S)
            batch = [self._buffer[i] for i in range(min(_BATCH, len(self._buffer)))]
            try:
                await self._append(batch)
            except UNREACHABLE:
                await asyncio.sleep(_backoff_s(failures))
                failures += 1
                continue
            failures = 0
            for _ in batch:
                self._buffer.popleft()

    async def _append(self, batch: Sequence[tuple[str, str, bytes, Headers]]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for topic, key, value, headers in batch:
                pipeline.xadd(
                    self._prefix + topic,
                    {"k": key, "v": value, **{_HEADER + name: word for name, word in headers}},
                    maxlen=self._max_records,
                    approximate=True,
                )
            await call(pipeline.execute())

    async def subscribe(self, topics: Sequence[str], since: Since) -> AsyncGenerator[Record, None]:
        at = dict.fromkeys(topics, "0-0") if since is Since.START else {}
        failures = 0
        client = connect(self._url, _SOCKET_TIMEOUT_S)
        try:
            while not self._is_closed:
                try:
                    for topic in topics:
                        if topic not in at:
                            at[topic] = await self._last_id(client, topic)
                    records = await self._read(client, at)
                except UNREACHABLE:
                    await asyncio.sleep(_backoff_s(failures))
                    failures += 1
                    continue
                failures = 0
                for record in records:
                    at[record.topic] = record.cursor
                    yield record
        finally:
            await client.aclose()

    async def _last_id(self, client: Redis, topic: str) -> str:
        """A concrete id for "from now on": `$` again and again would lose what came between."""
        last = await call(client.xrevrange(self._prefix + topic, count=1))
        return _text(last[0][0]) if last else "0-0"

    async def _read(self, client: Redis, at: dict[str, str]) -> list[Record]:
        streams: dict[Any, Any] = {self._prefix + topic: cursor for topic, cursor in at.items()}
        answer: Any = await call(client.xread(streams, count=_BATCH, block=_BLOCK_MS))
        records = []
        for name, entries in answer or ():
            topic = _text(name).removeprefix(self._prefix)
            for cursor, fields in entries:
                key, value = _text(fields[b"k"]), fields[b"v"]
                records.append(Record(topic, _text(cursor), key, value, _headers(fields)))
        return records

    async def close(self) -> None:
        if self._sender is not None and not self._sender.done():
            await asyncio.wait((self._sender,), timeout=_CLOSE_TIMEOUT_S)
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._is_closed = True
        await self._client.aclose()


def _backoff_s(failures: int) -> float:
    return _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]


def _headers(fields: dict[bytes, bytes]) -> Headers:
    if len(fields) == 2:
        return ()
    named = ((name.decode(), word) for name, word in fields.items())
    return tuple((name[len(_HEADER) :], word) for name, word in named if name.startswith(_HEADER))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
