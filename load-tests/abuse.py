"""What clients that misbehave cost the gateway, and everybody else.

Starts a mesh of its own (echo), reads a few steady streams from a process of its own, and meanwhile
does each kind of harm in turn: statuses, the gateway's memory over its idle, and the gaps between
the tokens of the steady streams, against those of a calm time.

    python load-tests/abuse.py [--only queued] [--out load-tests/results/NAME.json]

Each kind ends within `HARM_TIMEOUT_S`; what is still under way then is cut off and counted so. The
abuser runs at nice 10: with as few cores as a laptop has, it would else measure itself. The reader
of the steady streams is as nice as the mesh is.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harms import HARMS, MEGABYTE, WATCH_S, Harm, Target
from overhead.processes import cpu_s

BANYAN = str(Path(sys.executable).parent / "banyan")
NUM_STREAMS = 4
HARM_TIMEOUT_S = 50.0
POOL_BLOCKS = 16_384
"""Of each worker, so that prompts of 100,000 tokens fit at all: who fits nowhere only waits."""
STORE_BYTES = MEGABYTE
"""Of its disk: an echo's blocks are small, and removing a million files takes minutes."""


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
            if last:  # what it still waits for is a gap too, and lasts at least as long as this
                gaps.append(time.perf_counter() - last)
            writer.transport.abort()

    reading = asyncio.gather(*(read() for _ in range(NUM_STREAMS)))
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await reading
    gaps.sort()
    told = {"itl_ms": quantiles(gaps), "num_gaps": len(gaps), "num_broken": broken}
    print(json.dumps(told), flush=True)


def quantiles(ordered: list[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)} if ordered else {}


def memory_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MEGABYTE


def _cores(pids: dict[str, int], before_s: dict[str, float], wall_s: float) -> dict[str, float]:
    used = {name: (cpu_s(pid) - before_s[name]) / wall_s for name, pid in pids.items()}
    return {name: round(cores, 2) for name, cores in used.items() if cores >= 0.01}


class Watcher:
    """A process that reads steady streams for `WATCH_S` whenever it is told to."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls, target: Target) -> Watcher:
        command = [sys.executable, __file__, "--watch", f"{target.host}:{target.port}"]
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    def watch(self) -> asyncio.Task[bytes]:
        """Its line, once the time is over."""
        self._stdin.write(b"watch\n")
        return asyncio.create_task(self._stdout.readline())

    async def stop(self) -> None:
        self._stdin.close()
        await self._process.wait()


async def measure(harm: Harm, target: Target, watcher: Watcher) -> dict[str, Any]:
    """Do harm while a process of its own watches; statuses, memory over its start, and gaps."""
    target.statuses.clear()
    watching = watcher.watch()
    await asyncio.sleep(1.0)
    pids = {"abuser": os.getpid(), **target.pids}
    used_s = {name: cpu_s(pid) for name, pid in pids.items()}
    cores: dict[str, float] = {}
    before_mb = memory_mb(target.pid)
    peak_mb = before_mb
    started = time.perf_counter()
    doing = asyncio.ensure_future(harm(target))
    while not doing.done():
        peak_mb = max(peak_mb, memory_mb(target.pid))
        await asyncio.wait([doing], timeout=0.05)
        if not watching.done():
            cores = _cores(pids, used_s, time.perf_counter() - started)
        if time.perf_counter() - started > HARM_TIMEOUT_S:
            doing.cancel()
    with suppress(asyncio.CancelledError):
        doing.result()
    wall_s = time.perf_counter() - started
    watched: dict[str, Any] = json.loads(await watching)
    return {
        "what": (harm.__doc__ or "nothing").strip(),
        "statuses": dict(sorted(target.statuses.items())),
        "wall_s": round(wall_s, 1),
        "cut_short": doing.cancelled(),
        "cores": cores,
        "gateway_rss_mb": {"before": round(before_mb), "peak": round(peak_mb)},
        **watched,
    }


@contextmanager
def running() -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        place = ["--state-dir", folder]
        options = ["--runner", "echo", "--prefill", "1", "--decode", "2", "--port", "0"]
        pools = {f"BANYAN_{role}_NUM_BLOCKS": str(POOL_BLOCKS) for role in ("PREFILL", "DECODE")}
        pools["BANYAN_KVSTORE_DISK_BYTES"] = str(STORE_BYTES)
        command = [BANYAN, "up", "--detach", *place, *options]
        subprocess.run(command, check=True, env={**os.environ, **pools})
        try:
            state = json.loads((Path(folder) / "state.json").read_text())
            host, _, port = state["gateway_url"].removeprefix("http://").rpartition(":")
            (gateway,) = [one for one in state["processes"] if one["service"] == "gateway"]
            pids = {one["name"]: one["pid"] for one in state["processes"]}
            yield Target(host, int(port), gateway["pid"], pids)
        finally:
            subprocess.run([BANYAN, "down", *place], check=True)


async def run(harms: Iterable[Harm], out: Path | None) -> None:
    found: dict[str, Any] = {}
    with running() as target:
        watcher = await Watcher.start(target)
        os.nice(10)  # only now: the watcher would inherit it, and tell of its own waits for a core
        for harm in harms:
            figures = found[harm.__name__] = await measure(harm, target, watcher)
            print(harm.__name__, json.dumps(figures), flush=True)
            if out is not None:
                _keep(found, out)
        await watcher.stop()


def _keep(found: dict[str, Any], out: Path) -> None:
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "load-tests/abuse.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "harms": found,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[harm.__name__ for harm in HARMS], action="append")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        host, _, port = options.watch.rpartition(":")
        for _ in sys.stdin:
            asyncio.run(watch(host, int(port), WATCH_S))
        return
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    harms = [harm for harm in HARMS if not options.only or harm.__name__ in options.only]
    asyncio.run(run(harms, options.out))


if __name__ == "__main__":
    main()
