"""Open-loop load on a running gateway: Poisson arrivals, streamed answers, what a client feels.

Open loop, because a real crowd does not wait: requests leave at their drawn instants whatever
became of the ones before. All latencies count from the drawn instant, so a generator that falls
behind makes the figures worse, never better, and its lateness is in the result. The formulas are
the mesh's own (`banyan_core.slo`), at the client instead of the gateway.

    python load-tests/run.py --url http://127.0.0.1:8000 --rate 2 --duration 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

from banyan_core import slo
from banyan_core.events import RequestEnded
from banyan_core.types import NS_PER_S, Outcome

FINISHED, FAILED, CUT, REFUSED, NOT_SENT = "finished", "failed", "cut", "refused", "not_sent"
MAX_OUTSTANDING = 1_000
TIMEOUT_S = 300.0
WORDS = ("amber", "river", "seven", "lamp", "quiet", "stone", "paper", "north", "cedar", "glass")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: arrivals per second, for how long, of which shape."""

    rate: float
    duration_s: float
    prompt_words: int
    shared_words: int
    max_tokens: int
    seed: int


@dataclass(slots=True)
class Sample:
    """One request as its client saw it; instants in ns, from the drawn arrival."""

    result: str = CUT
    lateness_ns: int = 0
    written_ns: list[int] = field(default_factory=list)
    end_ns: int = 0
    num_output_tokens: int = 0
    error: str = ""

    def ended(self) -> RequestEnded:
        """The same facts that a gateway publishes, so that the same formulas judge them."""
        return RequestEnded(
            "",
            "",
            "",
            Outcome.FINISHED if self.result == FINISHED else Outcome.FAILED,
            num_output_tokens=self.num_output_tokens,
            ttft_ns=slo.ttft_ns(0, self.written_ns),
            e2e_ns=self.end_ns,
            itl_ns=slo.itl_ns(self.written_ns),
        )


def arrivals(load: Load) -> list[float]:
    """Seconds after the start: a Poisson process of this rate."""
    rng = random.Random(load.seed)
    instants: list[float] = []
    at = rng.expovariate(load.rate)
    while at < load.duration_s:
        instants.append(at)
        at += rng.expovariate(load.rate)
    return instants


def prompt(load: Load, number: int) -> str:
    """Words by seed; the first `shared_words` are the same in every prompt."""
    shared, own = random.Random(load.seed), random.Random(f"{load.seed}/{number}")
    words = shared.choices(WORDS, k=min(load.shared_words, load.prompt_words))
    words += own.choices(WORDS, k=load.prompt_words - len(words))
    return " ".join(words)


# ---------------------------------------------------------------- one request


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], due_ns: int) -> Sample:
    """Send one request now and read its stream to the end."""
    sample = Sample(lateness_ns=time.monotonic_ns() - due_ns)
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                sample.result, sample.error = REFUSED, f"{response.status_code}: {text[:200]}"
            else:
                await read_stream(response, sample, due_ns)
    except httpx2.HTTPError as error:
        sample.result, sample.error = FAILED, f"{type(error).__name__}: {error}"
    sample.end_ns = time.monotonic_ns() - due_ns
    return sample


async def read_stream(response: httpx2.Response, sample: Sample, due_ns: int) -> None:
    """Note when text came. Only `[DONE]` makes it finished; an error event makes it failed."""
    async for line in response.aiter_lines():
        now = time.monotonic_ns() - due_ns
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            sample.result = FINISHED
            return
        event = json.loads(data)
        if "error" in event:
            sample.result, sample.error = FAILED, str(event["error"].get("message", ""))
            return
        if any(choice["delta"].get("content") for choice in event.get("choices", ())):
            sample.written_ns.append(now)
        if event.get("usage"):
            sample.num_output_tokens = event["usage"]["completion_tokens"]


async def fire(client: httpx2.AsyncClient, load: Load, model: str) -> list[Sample]:
    """Start every request at its instant; return when all have ended."""
    start_ns = time.monotonic_ns()
    running: dict[asyncio.Task[Sample], None] = {}
    samples: list[Sample] = []

    def collect(task: asyncio.Task[Sample]) -> None:
        del running[task]
        samples.append(task.result())

    for number, at in enumerate(arrivals(load)):
        due_ns = start_ns + round(at * NS_PER_S)
        await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / NS_PER_S))
        if len(running) >= MAX_OUTSTANDING:
            samples.append(Sample(NOT_SENT))
            continue
        task = asyncio.create_task(ask(client, request_body(load, model, number), due_ns))
        running[task] = None
        task.add_done_callback(collect)
    while running:
        await asyncio.wait(list(running))
        await asyncio.sleep(0)
    return samples


def request_body(load: Load, model: str, number: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt(load, number)}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": True,  # every answer has its full length, so that runs compare
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# ---------------------------------------------------------------- the result


def figures(values_ns: Iterable[int | None]) -> dict[str, float | int]:
    """Mean and percentiles in seconds."""
    values = [value for value in values_ns if value is not None]
    summary: dict[str, float | int] = {"num_values": len(values)}
    if values:
        summary["mean"] = sum(values) / len(values) / NS_PER_S
        for name, share in PERCENTILES.items():
            summary[name] = (slo.nearest_rank(values, share) or 0) / NS_PER_S
    return summary


def summarise(
    samples: Sequence[Sample], target: slo.SloTarget, elapsed_ns: int
) -> dict[str, object]:
    """What the run showed. Latencies are those of finished requests."""
    ended = [sample.ended() for sample in samples]
    finished = [request for request in ended if request.outcome is Outcome.FINISHED]
    num_met = sum(slo.met_slo(request, target) is True for request in ended)
    num_tokens = sum(request.num_output_tokens for request in finished)
    errors = Counter(sample.error for sample in samples if sample.error)
    return {
        "num_requests": len(samples),
        "results": dict(sorted(Counter(sample.result for sample in samples).items())),
        "errors": dict(errors.most_common(5)),
        "elapsed_s": elapsed_ns / NS_PER_S,
        "finished_requests_per_s": len(finished) * NS_PER_S / elapsed_ns,
        "output_tokens_per_s": num_tokens * NS_PER_S / elapsed_ns,
        "slo_attainment": slo.attainment(num_met, len(ended)),
        "goodput_requests_per_s": slo.goodput(num_met, elapsed_ns),
        "ttft_s": figures(request.ttft_ns for request in finished),
        "itl_s": figures(gap for request in finished for gap in request.itl_ns),
        "tpot_s": figures(
            slo.tpot_ns(request.ttft_ns, request.e2e_ns, request.num_output_tokens)
            for request in finished
        ),
        "e2e_s": figures(request.e2e_ns for request in finished),
        "generator_lateness_s": figures(sample.lateness_ns for sample in samples),
    }


def commit() -> str:
    """The commit of the working tree, with `-dirty` when it differs; "unknown" outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


async def run(url: str, load: Load, target: slo.SloTarget) -> dict[str, object]:
    key = os.environ.get("BANYAN_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx2.AsyncClient(
        base_url=url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as client:
        models = await client.get("/v1/models")
        models.raise_for_status()
        model = str(models.json()["data"][0]["id"])
        start_ns = time.monotonic_ns()
        samples = await fire(client, load, model)
        elapsed_ns = time.monotonic_ns() - start_ns
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"num_cores": os.cpu_count(), "system": platform.system()},
        "python": platform.python_version(),
        "model": model,
        **summarise(samples, target, elapsed_ns),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", required=True, help="the gateway, http://HOST:PORT")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of arrivals")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--shared-words", type=int, default=0, help="same start of all prompts")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--ttft-target", type=float, default=2.0, help="seconds")
    parser.add_argument("--tpot-target", type=float, default=0.2, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or options.duration <= 0:
        parser.error("--rate and --duration must be above 0")
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    load = Load(
        options.rate,
        options.duration,
        options.prompt_words,
        options.shared_words,
        options.max_tokens,
        options.seed,
    )
    target = slo.SloTarget(ttft_s=options.ttft_target, tpot_s=options.tpot_target)
    try:
        result = asyncio.run(run(options.url, load, target))
    except httpx2.HTTPError as error:
        sys.exit(f"{options.url} does not answer as a gateway: {error}")
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
