"""A real split between two workers, beside the same engine in one process: `tokens per second`.

A Llama of about 150 million random parameters. One side is `overhead/one_process.py`, the other a
whole mesh, one prefill and one decode worker, asked over HTTP; both always have eight requests of
random prompts and fixed lengths. Each side has the thread setting that was best for it in a first
round; then both are measured in turn. Tokens are the workers' own counts over a window.

    python load-tests/disaggregation.py [--rounds 3] [--window 30] [--only 512/128] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from overhead.one_process import KV_BYTES, NUM_SEQUENCES, output_lengths, prompt
from overhead.processes import Mesh, Server, mesh
from overhead.random_llama import CONFIG, NUM_PARAMETERS, write_model

CASES = {"512/128": (512, 128), "128/512": (128, 512)}
SETTLE_S = 20.0
REQUEST_TIMEOUT_S = 600.0
ONE_PROCESS = Path(__file__).parent / "overhead" / "one_process.py"
_USAGE = re.compile(rb'"completion_tokens":\s?(\d+)')

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """Threads of the engine (of prefill, of decode), and whether they spin while they wait."""

    name: str
    env: Mapping[str, str]


def _single(threads: int, policy: str) -> Setting:
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    return Setting(f"{threads} threads, {policy}", env)


def _split(prefill: int, decode: int) -> Setting:
    env = {
        "OMP_WAIT_POLICY": "passive",
        "BANYAN_PREFILL_NUM_THREADS": str(prefill),
        "BANYAN_DECODE_NUM_THREADS": str(decode),
    }
    return Setting(f"{prefill}+{decode} threads, passive", env)


SINGLE_SETTINGS = (_single(2, "passive"), _single(2, "active"))
SPLIT_SETTINGS = (_split(1, 1), _split(1, 2), _split(2, 2))
"""The first is what `banyan up` chooses on two cores."""


# ---------------------------------------------------------------- one process


def measure_single(folder: Path, setting: Setting, case: str, window_s: float) -> Figures:
    numbers = [*CASES[case], SETTLE_S, window_s]
    command = [sys.executable, str(ONE_PROCESS), str(folder), *map(str, numbers)]
    env = os.environ | dict(setting.env)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


# ---------------------------------------------------------------- the mesh


@contextmanager
def split_mesh(folder: Path, setting: Setting) -> Iterator[Mesh]:
    share = {f"BANYAN_{role}_KV_BYTES": str(KV_BYTES) for role in ("PREFILL", "DECODE")}
    with mesh(["--model", str(folder)], share | dict(setting.env)) as running:
        yield running


async def measure_split(running: Mesh, model: str, case: str, window_s: float) -> Figures:
    num_input, num_output = CASES[case]
    lengths, rng = output_lengths(num_output), random.Random(time.time_ns())
    clients = [
        asyncio.create_task(_client(running.port, model, num_input, lengths, rng))
        for _ in range(NUM_SEQUENCES)
    ]
    try:
        async with asyncio.timeout(SETTLE_S + window_s + REQUEST_TIMEOUT_S):
            await _while_asking(clients, SETTLE_S)
            before, started = _counters(running), time.monotonic()
            await _while_asking(clients, window_s)
            after, elapsed_s = _counters(running), time.monotonic() - started
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return {name: (after[name] - before[name]) / elapsed_s for name in before}


async def _while_asking(clients: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """A client never ends by itself: one that did, failed."""
    done, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for client in done:
        client.result()


async def _client(
    port: int, model: str, num_input: int, lengths: Iterator[int], rng: random.Random
) -> None:
    """Asks, reads to the end, asks again."""
    while True:
        num_tokens = next(lengths)
        body = {
            "model": model,
            "prompt": prompt(rng, num_input),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = await _ask(port, json.dumps(body).encode())
        used = _USAGE.findall(answer)
        if not used or int(used[-1]) != num_tokens:
            raise RuntimeError(f"expected {num_tokens} tokens: ...{answer[-400:]!r}")


async def _ask(port: int, body: bytes) -> bytes:
    """The whole answer. Raw, for the client shares the cores with what it measures."""
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


_WORKER_COUNTERS = {
    "prompt_tokens_per_s": "vllm:prompt_tokens_total",
    "sampled_per_s": "vllm:generation_tokens_total",
    "steps_per_s": "banyan_worker_steps_total",
    "fetched_bytes_per_s": "banyan_worker_fetched_bytes_total",
    "exported_bytes_per_s": "banyan_worker_exported_bytes_total",
    "offloaded_blocks_per_s": "banyan_worker_offloaded_blocks_total",
    "failed_pulls_per_s": "banyan_worker_failed_pulls_total",
    "refused_per_s": "banyan_worker_refused_total",
}


def _counters(running: Mesh) -> Figures:
    """What the workers counted, by worker and name, and CPU seconds by process."""
    counters: Figures = {}
    for worker in ("prefill-0", "decode-0"):
        url = f"http://{running.metrics[worker]}/metrics"
        text = httpx2.get(url, timeout=10.0, trust_env=False).text
        for name, metric in _WORKER_COUNTERS.items():
            found = re.search(rf"^{metric}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
            assert found is not None, f"{worker} has no {metric}"
            counters[f"{worker} {name}"] = float(found[1])
    for name, pid in running.pids.items():
        if name != "supervisor":
            counters[f"{name} cores"] = Server(running.port, (pid,)).cpu_s()
    # The token that a prefill samples is the answer's first; decode reports, but does not count it.
    for name in ("sampled_per_s", "prompt_tokens_per_s"):
        both = counters[f"prefill-0 {name}"] + counters[f"decode-0 {name}"]
        counters[name.replace("sampled", "output_tokens")] = both
    return counters


# ---------------------------------------------------------------- rounds


@dataclass(slots=True)
class Bench:
    """Everything that was measured, by side, setting and case."""

    folder: Path
    cases: Sequence[str]
    window_s: float

    def single(self, setting: Setting) -> dict[str, Figures]:
        return {
            case: measure_single(self.folder, setting, case, self.window_s) for case in self.cases
        }

    def split(self, setting: Setting) -> dict[str, Figures]:
        with split_mesh(self.folder, setting) as running:
            return {
                case: asyncio.run(measure_split(running, self.folder.name, case, self.window_s))
                for case in self.cases
            }


def run_bench(bench: Bench, num_rounds: int) -> dict[str, Any]:
    """The first round tries every setting, the others only each side's best, in turn."""
    single = {setting.name: [_told(bench.single(setting), setting)] for setting in SINGLE_SETTINGS}
    split = {setting.name: [_told(bench.split(setting), setting)] for setting in SPLIT_SETTINGS}
    for _ in range(num_rounds - 1):
        for setting in _bests(SINGLE_SETTINGS, single, bench.cases):
            single[setting.name].append(_told(bench.single(setting), setting))
        for setting in _bests(SPLIT_SETTINGS, split, bench.cases):
            split[setting.name].append(_told(bench.split(setting), setting))
    return {
        "num_parameters": NUM_PARAMETERS,
        "model": CONFIG,
        "num_sequences": NUM_SEQUENCES,
        "window_s": bench.window_s,
        "cases": [_case(case, single, split) for case in bench.cases],
        "rounds": {"single": single, "disaggregated": split},
    }


Rounds = dict[str, list[dict[str, Figures]]]


def _told(figures: dict[str, Figures], setting: Setting) -> dict[str, Figures]:
    """For whoever waits: progress goes to standard error, and stays out of the result."""
    for case, one in figures.items():
        rate = one["output_tokens_per_s"]
        print(f"{case}, {setting.name}: {rate:.1f} output tokens/s", file=sys.stderr, flush=True)
    return figures


def _rate(rounds: Sequence[dict[str, Figures]], case: str) -> float:
    return median(figures[case]["output_tokens_per_s"] for figures in rounds)


def _bests(settings: Sequence[Setting], measured: Rounds, cases: Sequence[str]) -> list[Setting]:
    """The setting that was best in the first round, of each case."""
    names = {max(measured, key=lambda name: _rate(measured[name][:1], case)) for case in cases}
    return [setting for setting in settings if setting.name in names]


def _case(case: str, single: Rounds, split: Rounds) -> dict[str, object]:
    """Tokens/s are output tokens; total ones are in the same proportion, for lengths are fixed."""
    num_input, num_output = CASES[case]
    best_single = max(single, key=lambda name: (len(single[name]), _rate(single[name], case)))
    best_split = max(split, key=lambda name: (len(split[name]), _rate(split[name], case)))
    ours, theirs = _rate(split[best_split], case), _rate(single[best_single], case)
    per_token = (num_input + num_output) / num_output
    parts = [figures[case] for figures in split[best_split]]
    return {
        "name": f"{num_input} in, {num_output} out, {NUM_SEQUENCES} at once",
        "single_tokens_per_s": round(theirs, 1),
        "disaggregated_tokens_per_s": round(ours, 1),
        "ratio": round(ours / theirs, 3),
        "single_total_tokens_per_s": round(theirs * per_token, 1),
        "disaggregated_total_tokens_per_s": round(ours * per_token, 1),
        "single_threads": best_single,
        "disaggregated_threads": best_split,
        "disaggregated": {name: round(median(p[name] for p in parts), 3) for name in parts[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=float, default=30.0, help="seconds that count, of each")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "random-llama")
        result = run_bench(Bench(folder, options.only, options.window), options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    for case in result["cases"]:
        for name, value in case.items():
            print(f"{name:34} {value}")


if __name__ == "__main__":
    main()
