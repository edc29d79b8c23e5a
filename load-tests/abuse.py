"""What clients that misbehave cost the gateway, and everybody else.

Starts a mesh of its own (echo), reads a few steady streams from a process of its own, and meanwhile
does each kind of harm in turn: statuses, the gateway's memory over its idle, and the gaps between
the tokens of the steady streams, against those of a calm time.

    python load-tests/abuse.py [--only queued] [--out load-tests/results/NAME.json]

The abuser runs at nice 10: with as few cores as a laptop has, it would else measure itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BANYAN = str(Path(sys.executable).parent / "banyan")
NUM_STREAMS = 4
WATCH_S = 12.0
STATUS_TIMEOUT_S = 90.0
MEGABYTE = 1024 * 1024
STATUS_OF_NONE = "cut off"


@dataclass
class Target:
    """A running mesh: where its gateway listens, and its process."""

    host: str
    port: int
    pid: int
    statuses: Counter[str] = field(default_factory=Counter)

    def head(self, path: str, *headers: str) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    async def send(self, *pieces: bytes, read_rest: bool = True) -> None:
        """One request on a connection of its own; its status is counted."""
        status = STATUS_OF_NONE
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError, IndexError):
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                reader, writer = await self.connect()
                try:
                    for piece in pieces:
                        writer.write(piece)
                        await writer.drain()
                    status = (await reader.readline()).split()[1].decode()
                    while read_rest and await reader.read(65536):
                        pass
                finally:
                    writer.close()
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
    """24 prompts of 100,000 tokens each, 4 at a time, no two alike."""
    gate = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with gate:
            await target.ask({"prompt": f"{number:04d}" + "lorem ipsum " * 8333, "max_tokens": 4})

    await asyncio.gather(*(one(number) for number in range(24)))


async def queued(target: Target) -> None:
    """10,000 requests at once, each with a prompt of 100 tokens."""
    body = {"prompt": "x" * 100, "max_tokens": 16}
    await asyncio.gather(*(target.ask(body) for _ in range(10_000)))


HARMS: tuple[Callable[[Target], Awaitable[None]], ...] = (
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


# ---------------------------------------------------------------- watching


async def watch(host: str, port: int, seconds: float) -> None:
    """Read steady streams for so long, then print the gaps between their events."""
    gaps: list[float] = []
    broken = 0
    body = {"model": "echo", "prompt": "steady ", "max_tokens": 100_000, "stream": True}
    data = json.dumps(body).encode()
    head = Target(host, port, 0).head("/v1/completions", f"content-length: {len(data)}")

    async def read() -> None:
        nonlocal broken
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(head + data)
        last = 0.0
        try:
            while True:
                line = await reader.readline()
                if not line or b'"error"' in line:
                    broken += 1
                    return
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last:
                        gaps.append(now - last)
                    last = now
        finally:
            writer.transport.abort()

    reading = asyncio.gather(*(read() for _ in range(NUM_STREAMS)))
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reading
    gaps.sort()
    print(json.dumps({"itl_ms": quantiles(gaps), "num_gaps": len(gaps), "num_broken": broken}))


def quantiles(ordered: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)} if ordered else {}


def memory_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MEGABYTE


async def measure(harm: Callable[[Target], Awaitable[None]], target: Target) -> dict[str, Any]:
    """Do harm while a process of its own watches; statuses, memory over its start, and gaps."""
    target.statuses.clear()
    command = [sys.executable, __file__, "--watch", f"{target.host}:{target.port}"]
    watching = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    await asyncio.sleep(1.0)
    before_mb = memory_mb(target.pid)
    peak_mb = before_mb
    started = time.perf_counter()
    doing = asyncio.ensure_future(harm(target))
    while not doing.done():
        peak_mb = max(peak_mb, memory_mb(target.pid))
        await asyncio.wait([doing], timeout=0.05)
    doing.result()
    wall_s = time.perf_counter() - started
    output, _ = await watching.communicate()
    watched: dict[str, Any] = json.loads(output)
    return {
        "what": (harm.__doc__ or "nothing").strip(),
        "statuses": dict(sorted(target.statuses.items())),
        "wall_s": round(wall_s, 1),
        "gateway_rss_mb": {"before": round(before_mb), "peak": round(peak_mb)},
        **watched,
    }


@contextmanager
def running() -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        place = ["--state-dir", folder]
        options = ["--runner", "echo", "--prefill", "1", "--decode", "2", "--port", "0"]
        subprocess.run([BANYAN, "up", "--detach", *place, *options], check=True)
        try:
            state = json.loads((Path(folder) / "state.json").read_text())
            host, _, port = state["gateway_url"].removeprefix("http://").rpartition(":")
            (gateway,) = [one for one in state["processes"] if one["service"] == "gateway"]
            yield Target(host, int(port), gateway["pid"])
        finally:
            subprocess.run([BANYAN, "down", *place], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[harm.__name__ for harm in HARMS], action="append")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        host, _, port = options.watch.rpartition(":")
        asyncio.run(watch(host, int(port), WATCH_S))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    harms = [harm for harm in HARMS if not options.only or harm.__name__ in options.only]
    with running() as target:
        os.nice(10)
        found = {harm.__name__: asyncio.run(measure(harm, target)) for harm in harms}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "load-tests/abuse.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "harms": found,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
