"""Clients that ask, read to the end and ask again, as `one_process.py` has it without a gateway.

Raw HTTP, for they share the cores with what they measure.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence

from overhead.one_process import NUM_SEQUENCES, output_lengths, prompt

_USAGE = re.compile(rb'"completion_tokens":\s?(\d+)')
_REFUSED = (b"HTTP/1.1 429", b"HTTP/1.1 503")
_RETRY_S = 0.2


class ClosedClients:
    """`NUM_SEQUENCES` of them, from `start` to `stop`. One that is refused asks again, counted."""

    def __init__(self, port: int, model: str, num_input: int, num_output: int) -> None:
        self._port = port
        self._model = model
        self._num_input = num_input
        self._lengths = output_lengths(num_output)
        self._rng = random.Random(time.time_ns())
        self._tasks: Sequence[asyncio.Task[None]] = ()
        self.num_refused = 0
        self.num_answers = 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(NUM_SEQUENCES)]

    async def go_on(self, seconds: float) -> None:
        """A client never ends by itself: one that did, failed, and so does this."""
        first = asyncio.FIRST_COMPLETED
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=first)
        for client in done:
            client.result()

    async def stop(self) -> None:
        for client in self._tasks:
            client.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self) -> None:
        while True:
            num_tokens = next(self._lengths)
            answer = await self._ask(json.dumps(self._body(num_tokens)).encode())
            used = _USAGE.findall(answer)
            if not used or int(used[-1]) != num_tokens:
                raise RuntimeError(f"expected {num_tokens} tokens: ...{answer[-400:]!r}")
            self.num_answers += 1

    def _body(self, num_tokens: int) -> dict[str, object]:
        return {
            "model": self._model,
            "prompt": prompt(self._rng, self._num_input),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def _ask(self, body: bytes) -> bytes:
        """The whole answer, of the first time that it is not refused."""
        while (answer := await _exchange(self._port, body)).startswith(_REFUSED):
            self.num_refused += 1
            await asyncio.sleep(_RETRY_S)
        return answer


async def _exchange(port: int, body: bytes) -> bytes:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        return await reader.read()
    finally:
        writer.close()
