"""One response on its way to the client: bounded waits, and a sign of life in long silences.

A write ends at once unless the client is behind, so a timeout around each would cost more than the
write itself. One timer per response looks after all its writes, another after its silences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.types import Send

Headers = list[tuple[bytes, bytes]]


class SlowClient(Exception):
    """The client did not take what was written to it within the time allowed."""


class Writer:
    """Sends one response, each write within `timeout_s`. `started` is when a status went out.

    `send` passes through all layers, which look at the status; `send_body` goes to the server
    itself, because a stream has a part of its body for every token.
    """

    def __init__(self, send: Send, send_body: Send, timeout_s: float) -> None:
        self._send = send
        self._send_body = send_body
        self._timeout_s = timeout_s
        self._now = asyncio.get_running_loop().time
        self._last_s = self._now()
        self._is_writing = False
        self._aside: asyncio.Task[None] | None = None
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        await self._turn()
        await self._start(status, headers)

    async def write(self, data: bytes) -> None:
        if self._aside is not None:
            await self._turn()
        await self._put(data, True)

    async def end(self, data: bytes = b"") -> None:
        await self._turn()
        await self._put(data, False)

    async def _turn(self) -> None:
        if self._aside is not None:
            await self._aside
            self._aside = None

    async def _start(self, status: int, headers: Headers) -> None:
        self.started = True
        self._begin()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._is_writing = False

    async def _put(self, data: bytes, more: bool) -> None:
        self._begin()
        await self._send_body({"type": "http.response.body", "body": data, "more_body": more})
        self._is_writing = False

    def _begin(self) -> None:
        self._last_s = self._now()
        self._is_writing = True

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Around everything that writes. Raises SlowClient when a write takes too long."""
        try:
            async with asyncio.timeout(None) as limit:
                with _Timer(lambda: self._late_at(limit)):
                    yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise SlowClient(f"not read within {self._timeout_s} s") from None

    def _late_at(self, limit: asyncio.Timeout) -> float | None:
        now = self._now()
        due = (self._last_s if self._is_writing else now) + self._timeout_s
        if due > now:
            return due
        limit.reschedule(now)
        return None

    @asynccontextmanager
    async def kept_alive(
        self, silence_s: float, headers: Headers, sign: bytes
    ) -> AsyncIterator[None]:
        """Within the block, silence of `silence_s` is broken by `sign`; the status goes first."""
        self._last_s = self._now()
        try:
            with _Timer(lambda: self._speak_at(silence_s, headers, sign)):
                yield
        except BaseException:
            if self._aside is not None:
                self._aside.cancel()
                await asyncio.gather(self._aside, return_exceptions=True)
                self._aside = None
            raise

    def _speak_at(self, silence_s: float, headers: Headers, sign: bytes) -> float:
        now = self._now()
        due = self._last_s + silence_s
        if due > now:
            return due
        if not self._is_writing:
            self._aside = asyncio.create_task(self._speak(headers, sign))
        return now + silence_s

    async def _speak(self, headers: Headers, sign: bytes) -> None:
        if not self.started:
            await self._start(200, headers)
        await self._put(sign, True)


class _Timer:
    """Within its block calls `look`, which says when to look again, or None for never."""

    def __init__(self, look: Callable[[], float | None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._run()

    def _run(self) -> None:
        due = self._look()
        self._handle = None if due is None else self._loop.call_at(due, self._run)

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.cancel()
