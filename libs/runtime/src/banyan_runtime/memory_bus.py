"""The twin of the bus: one broker per simulation, encoded records, the same bounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from banyan_runtime.bus import Headers, Record, Since

_CLOSE_TIMEOUT_S = 1.0


class MemoryBroker:
    """What survives its clients: the retained records of each topic. Can be taken down."""

    def __init__(self, max_records: int = 100_000) -> None:
        self._max_records = max_records
        self._topics: dict[str, deque[Record]] = {}
        self._num_appended: dict[str, int] = {}
        self._is_up = True
        self._changed = asyncio.Event()

    def down(self, *, lose_records: bool = False) -> None:
        """Stop taking and giving records. With `lose_records`, as if it kept none on disk."""
        self._is_up = False
        if lose_records:
            self._topics.clear()

    def up(self) -> None:
        self._is_up = True
        self._notify()

    def append(self, topic: str, key: str, value: bytes, headers: Headers = ()) -> None:
        number = self._num_appended.get(topic, 0) + 1
        self._num_appended[topic] = number
        retained = self._topics.setdefault(topic, deque(maxlen=self._max_records))
        retained.append(Record(topic, str(number), key, value, headers))
        self._notify()

    def last(self, topic: str) -> int:
        """The number of the newest record ever, 0 when there was none."""
        return self._num_appended.get(topic, 0)

    def after(self, topic: str, number: int, limit: int) -> list[Record]:
        """Up to `limit` retained records that follow `number`."""
        retained = self._topics.get(topic)
        if not retained or not self._is_up:
            return []
        first = int(retained[0].cursor)
        start = max(number + 1 - first, 0)
        return [retained[i] for i in range(start, min(start + limit, len(retained)))]

    async def wait_changed(self) -> None:
        """Return after the next record or `up`."""
        await self._changed.wait()

    async def wait_up(self) -> None:
        while not self._is_up:
            await self.wait_changed()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryBus:
    """One process's access to the broker."""

    def __init__(
        self, broker: MemoryBroker, *, max_buffered: int = 10_000, delay_s: float = 0.0
    ) -> None:
        self._broker = broker
        self._max_buffered = max_buffered
        self._delay_s = delay_s
        self._buffer: deque[tuple[str, str, bytes, Headers]] = deque()
        self._sender: asyncio.Task[None] | None = None
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
        await asyncio.sleep(self._delay_s)
        while self._buffer:
            await self._broker.wait_up()
            self._broker.append(*self._buffer.popleft())

    async def subscribe(self, topics: Sequence[str], since: Since) -> AsyncGenerator[Record, None]:
        await self._broker.wait_up()
        at = {topic: self._broker.last(topic) if since is Since.TAIL else 0 for topic in topics}
        while True:
            records = self._read(at)
            for record in records:
                at[record.topic] = int(record.cursor)
                yield record
            if not records:
                await self._broker.wait_changed()

    def _read(self, at: dict[str, int]) -> list[Record]:
        if self._is_closed:
            return []
        return [record for topic in at for record in self._broker.after(topic, at[topic], 256)]

    def cut(self) -> None:
        """The process has crashed: nothing it does from now on is seen."""
        self._is_closed = True
        self._buffer.clear()
        if self._sender is not None:
            self._sender.cancel()

    async def close(self) -> None:
        if self._sender is not None and not self._sender.done():
            await asyncio.wait((self._sender,), timeout=_CLOSE_TIMEOUT_S)
        self.cut()
        if self._sender is not None:
            await asyncio.gather(self._sender, return_exceptions=True)
