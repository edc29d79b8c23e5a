"""Three times what a mesh can do, for a minute: does it go on at its best, and say no early?

Starts a mesh of its own (echo runner, few slots, so that slots are what runs out and not the
machine), finds its best goodput by a ramp of Poisson arrivals, then offers three times that. A
tenth of the requests is of a better class. Goodput counts answers that are complete and whose
first token came within the target; a request without an answer within its deadline is one that
timed out silently, of which there must be none.

    python load-tests/overload.py --duration 60 --out load-tests/results/DATE-overload.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from banyan_core.types import NS_PER_S
from overhead.processes import Mesh, mesh
from run import commit, figures

NUM_TOKENS = (64, 192)
HIGH, LOW = -1, 0
HIGH_SHARE = 0.1
TTFT_TARGET_NS = 2 * NS_PER_S
DEADLINE_S = 10
FIRST_RATE, GROWTH, MAX_STEPS = 4.0, 1.5, 12
WORKER = {"MAX_RUNNING": "2", "MAX_WAITING": "1"}
SETTINGS = {
    "BANYAN_GATEWAY_DEFAULT_DEADLINE_S": str(DEADLINE_S),
    **{
        f"BANYAN_{role}_{key}": value
        for role in ("PREFILL", "DECODE")
        for key, value in WORKER.items()
    },
}


@dataclass(slots=True)
class Sample:
    """One request as its client saw it; durations in ns from its drawn arrival."""

    priority: int
    status: int = 0  # 0: no answer at all
    done: bool = False
    code: str = ""
    retry_after_s: int | None = None
    ttft_ns: int | None = None
    took_ns: int = 0
    ended_ns: int = 0  # on the clock

    @property
    def good(self) -> bool:
        return self.done and self.ttft_ns is not None and self.ttft_ns <= TTFT_TARGET_NS

    @property
    def shed(self) -> bool:
        """Told so before any text."""
        return self.status in (429, 503)


class Crowd:
    """Open-loop clients of one gateway: each leaves at its drawn instant, whatever happens."""

    def __init__(self, client: httpx2.AsyncClient, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._rng = random.Random(seed)

    async def offer(self, rate: float, duration_s: float) -> list[Sample]:
        """Returns when all have ended."""
        started = due = time.monotonic_ns()
        tasks: list[asyncio.Task[Sample]] = []
        while True:
            due += round(self._rng.expovariate(rate) * NS_PER_S)
            if due >= started + duration_s * NS_PER_S:
                return list(await asyncio.gather(*tasks))
            await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / NS_PER_S))
            priority = HIGH if self._rng.random() < HIGH_SHARE else LOW
            tasks.append(asyncio.create_task(self._ask(self._body(priority), due)))

    def _body(self, priority: int) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": " ".join(str(self._rng.randrange(10_000)) for _ in range(30)),
            "max_tokens": self._rng.randint(*NUM_TOKENS),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "priority": priority,
        }

    async def _ask(self, body: dict[str, Any], due_ns: int) -> Sample:
        sample = Sample(body["priority"])
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                sample.status = response.status_code
                if response.status_code == 200:
                    await self._read(response, sample, due_ns)
                else:
                    sample.code = json.loads(await response.aread())["error"]["code"]
                    sample.retry_after_s = int(response.headers["retry-after"])
        except httpx2.HTTPError as error:
            sample.code = type(error).__name__
        sample.ended_ns = time.monotonic_ns()
        sample.took_ns = sample.ended_ns - due_ns
        return sample

    async def _read(self, response: httpx2.Response, sample: Sample, due_ns: int) -> None:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                sample.done = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    sample.code = event["error"]["code"]
                elif sample.ttft_ns is None:
                    sample.ttft_ns = time.monotonic_ns() - due_ns


def goodput(samples: Sequence[Sample], since_ns: int, duration_s: float) -> float:
    """Good answers per second that ended in the time of the arrivals."""
    until_ns = since_ns + duration_s * NS_PER_S
    return sum(sample.good and sample.ended_ns < until_ns for sample in samples) / duration_s


async def ramp(crowd: Crowd, step_s: float) -> list[dict[str, float]]:
    """Ever more arrivals, until two steps in a row bring no more goodput."""
    steps: list[dict[str, float]] = []
    rate, best, num_flat = FIRST_RATE, 0.0, 0
    while num_flat < 2 and len(steps) < MAX_STEPS:
        since_ns = time.monotonic_ns()
        good = goodput(await crowd.offer(rate, step_s), since_ns, step_s)
        steps.append({"rate": round(rate, 2), "goodput": round(good, 2)})
        print(steps[-1], file=sys.stderr, flush=True)
        num_flat = 0 if good > 1.05 * best else num_flat + 1
        best, rate = max(best, good), rate * GROWTH
    return steps


def of_class(samples: Sequence[Sample]) -> dict[str, object]:
    shed = [sample for sample in samples if sample.shed]
    answered = [sample for sample in samples if sample.done]
    return {
        "num_requests": len(samples),
        "share_good": round(sum(sample.good for sample in samples) / max(1, len(samples)), 4),
        "share_shed": round(len(shed) / max(1, len(samples)), 4),
        "statuses": dict(sorted(Counter(str(sample.status) for sample in samples).items())),
        "codes": dict(Counter(sample.code for sample in samples if sample.code).most_common()),
        "ttft_s": figures(sample.ttft_ns for sample in answered),
        "e2e_s": figures(sample.took_ns for sample in answered),
        "time_to_be_shed_s": figures(sample.took_ns for sample in shed),
    }


def cpu_s(running: Mesh) -> dict[str, float]:
    """CPU seconds so far, by process; of this one, too, which shares the machine."""
    return running.cpu_s() | {"client": time.process_time()}


async def measure(running: Mesh, options: argparse.Namespace) -> dict[str, object]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{running.port}",
        timeout=DEADLINE_S + 5,
        limits=limits,
        trust_env=False,
    ) as client:
        model = str((await client.get("/v1/models")).json()["data"][0]["id"])
        crowd = Crowd(client, model, options.seed)
        steps = await ramp(crowd, options.step)
        peak = max(step["goodput"] for step in steps)
        rate = options.times * peak
        since_ns, before = time.monotonic_ns(), cpu_s(running)
        samples = await crowd.offer(rate, options.duration)
    elapsed_s = (time.monotonic_ns() - since_ns) / NS_PER_S
    after = cpu_s(running)
    good = goodput(samples, since_ns, options.duration)
    shed = [sample for sample in samples if sample.shed]
    return {
        "ramp": steps,
        "peak_goodput": peak,
        "offered_rate": round(rate, 2),
        "duration_s": options.duration,
        "goodput": round(good, 2),
        "share_of_peak": round(good / peak, 3),
        "num_silent": sum(not sample.done and not sample.code for sample in samples),
        "num_without_answer": sum(sample.status == 0 for sample in samples),
        "cores": {name: round((after[name] - before[name]) / elapsed_s, 3) for name in after},
        "retry_after_s": dict(sorted(Counter(s.retry_after_s or 0 for s in shed).items())),
        "all": of_class(samples),
        "high": of_class([sample for sample in samples if sample.priority == HIGH]),
        "low": of_class([sample for sample in samples if sample.priority == LOW]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=2)
    parser.add_argument("--times", type=float, default=3.0, help="of the peak, for the overload")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of overload")
    parser.add_argument("--step", type=float, default=10.0, help="seconds of each step of the ramp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the mesh goes down as well
    counts = ["--prefill", str(options.prefill), "--decode", str(options.decode)]
    with mesh(["--runner", "echo", *counts], SETTINGS) as running:
        measured = asyncio.run(measure(running, options))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"num_cores": os.cpu_count(), "processor": platform.machine()},
        "settings": SETTINGS,
        "figures": measured,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
