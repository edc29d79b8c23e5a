"""The kinds of harm that `abuse.py` does to a gateway, each with the statuses that came back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

WATCH_S = 12.0
STATUS_TIMEOUT_S = 45.0
MEGABYTE = 1024 * 1024
STATUS_OF_NONE = "cut off"


@dataclass
class Target:
    """A running mesh: where its gateway listens, its process, and those of all services."""

    host: str
    port: int
    pid: int
    pids: dict[str, int] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)

    def head(self, path: str, *headers: str) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def send(self, *pieces: bytes, read_rest: bool = True) -> None:
        """One request on a connection of its own; its status is counted."""
        status = f"{STATUS_OF_NONE}, not connected"
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                reader, writer = await self.connect()
                status = f"{STATUS_OF_NONE}, connected"
                try:
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                    line = await reader.readline()
                    status = line.split()[1].decode() if line else f"{STATUS_OF_NONE}, closed"
                    while read_rest and await reader.read(65536):
                        pass
                finally:
                    writer.close()
        except ConnectionError:
            status = f"{STATUS_OF_NONE}, reset" if status.startswith(STATUS_OF_NONE) else status
        except (OSError, TimeoutError):
            pass
        finally:
            self.statuses[status] += 1

    async def ask(self, body: dict[str, Any]) -> None:
        data = json.dumps({"model": "echo"} | body).encode()
        head = self.head("/v1/completions", f"content-length: {len(data)}", "connection: close")
        await self.send(head + data)


# ---------------------------------------------------------------- kinds of harm


async def calm(target: Target) -> None:
    await asyncio.sleep(WATCH_S)


async def connections(target: Target) -> None:
    """500 at once, each with a request."""
    await asyncio.gather(
        *(target.ask({"prompt": f"hello {n}", "max_tokens": 8}) for n in range(500))
    )


async def large_bodies(target: Target) -> None:
    """40 bodies of 50 MB at once, half of them without saying so before."""
    size = 50 * MEGABYTE
    piece = b" " * MEGABYTE
    chunk = b"%x\r\n%b\r\n" % (MEGABYTE, piece)
    announced = target.head("/v1/completions", f"content-length: {size}", "connection: close")
    chunked = target.head("/v1/completions", "transfer-encoding: chunked", "connection: close")
    both = [
        target.send(announced, *[piece] * 50, read_rest=False),
        target.send(chunked, *[chunk] * 50, b"0\r\n\r\n", read_rest=False),
    ]
    both += [target.send(announced, *[piece] * 50, read_rest=False) for _ in range(19)]
    both += [target.send(chunked, *[chunk] * 50, read_rest=False) for _ in range(19)]
    await asyncio.gather(*both)


async def allowed_bodies(target: Target) -> None:
    """40 bodies of 7 MB at once: allowed each, not all together."""
    data = json.dumps({"model": "echo", "prompt": "x" * (7 * MEGABYTE)}).encode()
    head = target.head("/v1/completions", f"content-length: {len(data)}", "connection: close")
    await asyncio.gather(*(target.send(head, data) for _ in range(40)))


async def broken_bodies(target: Target) -> None:
    """Not UTF-8, not JSON, nested, huge, twice the same name; all small."""
    bodies = [
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"model": "echo", "n": NaN}',
        b'{"model": "echo", "seed": 1' + b"0" * 4000 + b"}",
        b'{"model": "echo", "prompt": "a", "n": 1, "n": 99}',
    ]
    heads = [
        target.head("/v1/completions", f"content-length: {len(data)}", "connection: close")
        for data in bodies
    ]
    await asyncio.gather(
        *(target.send(*pair) for _ in range(50) for pair in zip(heads, bodies, strict=True))
    )


async def slow_heads(target: Target) -> None:
    """200 clients that send a byte of their request's head now and then."""

    async def drip() -> None:
        status = STATUS_OF_NONE
        with suppress(OSError, IndexError):
            reader, writer = await target.connect()
            reading = asyncio.create_task(reader.readline())
            while not reading.done():
                writer.write(b"G")
                await asyncio.sleep(0.5)
            writer.close()
            status = (await reading).split()[1].decode()
        target.statuses[status] += 1

    await asyncio.gather(*(drip() for _ in range(200)))


async def slow_readers(target: Target) -> None:
    """50 clients that ask for long answers and read a byte a second."""
    body = {"model": "echo", "prompt": "x" * 500, "max_tokens": 20_000, "logprobs": 5}
    data = json.dumps(body | {"stream": True}).encode()

    async def read_slowly() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=64)
        head = target.head("/v1/completions", f"content-length: {len(data)}")
        writer.write(head + data)
        status = (await reader.readline()).split()[1].decode()
        with suppress(OSError, asyncio.IncompleteReadError):
            for _ in range(round(WATCH_S)):
                await reader.readexactly(1)
                await asyncio.sleep(1)
        writer.transport.abort()
        target.statuses[status] += 1

    await asyncio.gather(*(read_slowly() for _ in range(50)))


async def long_prompts(target: Target) -> None:
    """12 prompts of 100,000 tokens each, 4 at a time, no two alike."""
    gate = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with gate:
            await target.ask({"prompt": f"{number:04d}" + "lorem ipsum " * 8333, "max_tokens": 4})

    await asyncio.gather(*(one(number) for number in range(12)))


async def queued(target: Target) -> None:
    """10,000 requests at once, each with a prompt of 100 tokens."""
    body = {"prompt": "x" * 100, "max_tokens": 16}
    await asyncio.gather(*(target.ask(body) for _ in range(10_000)))


Harm = Callable[[Target], Awaitable[None]]

HARMS: tuple[Harm, ...] = (
    calm,
    connections,
    large_bodies,
    allowed_bodies,
    broken_bodies,
    slow_heads,
    slow_readers,
    long_prompts,
    queued,
)
