"""A client that costs little, so that a measure is of the server: raw sockets, no JSON decoding.

It asks for one completion after the other on one kept connection and notes when text came. Text is
found in the bytes, in the way every server here writes it; that an answer is complete is checked
by its length, character by character: the prompts are ASCII and the echo gives one character a
token.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

_TEXT = re.compile(rb'"(?:text|content)":\s?"((?:[^"\\]|\\.)+)"')
_LAST_CHUNK = b"0\r\n\r\n"
ANSWER_TIMEOUT_S = 180.0


class BadAnswer(Exception):
    """Not the answer that was asked for: no figure may be taken from it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and what to ask. `model` is the server's name for it."""

    port: int
    model: str
    prompt: str
    max_tokens: int
    headers: tuple[str, ...] = ()

    def request(self) -> bytes:
        body = json.dumps(
            {
                "model": self.model,
                "prompt": self.prompt,
                "max_tokens": self.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        ).encode()
        head = [
            "POST /v1/completions HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *self.headers,
        ]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@dataclass(slots=True)
class Answer:
    """When it was asked, when its first text came and when it ended, on the client's clock."""

    asked_ns: int
    first_ns: int = 0
    end_ns: int = 0
    text: list[bytes] = field(default_factory=list)

    @property
    def ttft_ns(self) -> int:
        return self.first_ns - self.asked_ns


class _Connection(asyncio.Protocol):
    """One connection, one answer at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._answer = Answer(0)
        self._rest = b""
        self._complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._rest, self._complete = b"", False
        self._answer = Answer(time.monotonic_ns())
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rest + data
        cut = data.rfind(b"\n") + 1
        lines, self._rest = data[:cut], data[cut:]
        pieces = _TEXT.findall(lines)
        if pieces and not self._answer.first_ns:
            self._answer.first_ns = now
        self._answer.text += pieces
        self._complete = self._complete or b"data: [DONE]" in lines
        refused = data.startswith(b"HTTP/") and not data.startswith(b"HTTP/1.1 200")
        if refused or lines.endswith(_LAST_CHUNK):
            self._end(now, data)

    def _end(self, now: int, data: bytes) -> None:
        if self._done is None or self._done.done():
            return
        if not self._complete:
            self._done.set_exception(BadAnswer(data[:300].decode(errors="replace")))
            return
        self._answer.end_ns = now
        self._done.set_result(self._answer)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(BadAnswer(f"the connection was closed: {error}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """One kept connection to one target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._request = target.request()
        self._connection = _Connection()

    async def __aenter__(self) -> Client:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._connection, "127.0.0.1", self._target.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.close()

    async def ask(self) -> Answer:
        """Raises BadAnswer for anything but the whole answer."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await self._connection.ask(self._request)
        text = json.loads(b'"' + b"".join(answer.text) + b'"')
        expected = echo(self._target.prompt, self._target.max_tokens)
        if text != expected:
            raise BadAnswer(f"expected {expected[:80]!r}, got {text[:80]!r}")
        return answer


def echo(prompt: str, num_tokens: int) -> str:
    """What an echo answers, the runner's and the bare endpoint's: the prompt, over and over."""
    repeated = prompt * (num_tokens // len(prompt) + 1)
    return repeated[:num_tokens]


async def keep_asking(targets: Sequence[Target], num_answers: int) -> list[Answer]:
    """One client per target, side by side, each asking for so many answers in a row."""

    async def one(target: Target) -> list[Answer]:
        async with Client(target) as client:
            return [await client.ask() for _ in range(num_answers)]

    rows = await asyncio.gather(*map(one, targets))
    return [answer for row in rows for answer in row]
