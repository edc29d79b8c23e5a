"""A real split between two workers, beside the same engine in one process: `tokens per second`.

A Llama of about 150 million random parameters. One side is `overhead/one_process.py`, the other a
whole mesh, one prefill and one decode worker, asked over HTTP; both always have eight requests of
random prompts and fixed lengths. Each side has the thread setting that was best for it in a first
round; with more rounds both are then measured in turn. Tokens are the workers' own counts over a
window. A round of one shape takes under 4 minutes on a quiet machine, one of both under 6.

    python load-tests/disaggregation.py [--rounds 1] [--window 20] [--only 512/128] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
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

from overhead.closed_clients import ClosedClients
from overhead.one_process import KV_BYTES, NUM_SEQUENCES
from overhead.processes import Mesh, mesh
from overhead.random_llama import CONFIG, NUM_PARAMETERS, write_model

CASES = {"512/128": (512, 128), "128/512": (128, 512)}
WORKERS = ("prefill-0", "decode-0")
SETTLE_S = 12.0
"""At least; and until so many answers ended as there are sequences: they are at all stages then."""
TIMEOUT_S = 600.0
ONE_PROCESS = Path(__file__).parent / "overhead" / "one_process.py"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """Threads of the engine (of prefill, of decode), and whether they spin while they wait."""

    name: str
    env: Mapping[str, str]


def _single(threads: int, policy: str) -> Setting:
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    return Setting(f"{threads} threads, {policy}", env)


def _split(prefill: int, decode: int, policy: str) -> Setting:
    env = {
        "OMP_WAIT_POLICY": policy,
        "OMP_PROC_BIND": "false",  # else both workers' first threads were on one core
        "BANYAN_PREFILL_CORE_TURNS": "",
        "BANYAN_DECODE_CORE_TURNS": "",
        "BANYAN_PREFILL_NUM_THREADS": str(prefill),
        "BANYAN_DECODE_NUM_THREADS": str(decode),
    }
    return Setting(f"{prefill}+{decode} threads, {policy}", env)


SINGLE_SETTINGS = (_single(2, "passive"), _single(2, "active"))
SPLIT_SETTINGS = (
    Setting("2+2 threads, turns", {}),
    _split(1, 1, "passive"),
    _split(1, 2, "passive"),
    _split(1, 2, "active"),
)
"""The first is what `banyan up` chooses on two cores. Never two pools that spin on them at once."""


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
    """Its engines are that of `one_process`: as much KV, and no drafts."""
    engine = {"KV_BYTES": str(KV_BYTES), "MAX_DRAFT_TOKENS": "0"}
    both = {f"BANYAN_{role}_{k}": v for role in ("PREFILL", "DECODE") for k, v in engine.items()}
    with mesh(["--model", str(folder)], both | dict(setting.env)) as running:
        yield running


async def measure_split(running: Mesh, model: str, case: str, window_s: float) -> Figures:
    clients = ClosedClients(running.port, model, *CASES[case])
    clients.start()
    try:
        async with asyncio.timeout(SETTLE_S + window_s + TIMEOUT_S):
            await clients.go_on(SETTLE_S)
            while clients.num_answers < NUM_SEQUENCES:
                await clients.go_on(1.0)
            before, started = _counters(running, clients), time.monotonic()
            await clients.go_on(window_s)
            after, elapsed_s = _counters(running, clients), time.monotonic() - started
    finally:
        await clients.stop()
    figures = {name: (after[name] - before[name]) / elapsed_s for name in before}
    for worker in WORKERS:
        steps, computed = figures[f"{worker} steps_per_s"], _computed_per_s(figures, worker)
        figures[f"{worker} tokens_per_step"] = computed / steps if steps else 0.0
    return figures


def _computed_per_s(figures: Figures, worker: str) -> float:
    """Rows of its steps: of the tokens that it sampled, one each is computed for the next."""
    return figures[f"{worker} prompt_tokens_per_s"] + figures[f"{worker} sampled_per_s"]


_WORKER_COUNTERS = {
    "prompt_tokens_per_s": "vllm:prompt_tokens_total",
    "sampled_per_s": "vllm:generation_tokens_total",
    "steps_per_s": "banyan_worker_steps_total",
    "fetched_blocks_per_s": "banyan_worker_fetched_blocks_total",
    "fetched_bytes_per_s": "banyan_worker_fetched_bytes_total",
    "exported_bytes_per_s": "banyan_worker_exported_bytes_total",
    "offloaded_blocks_per_s": "banyan_worker_offloaded_blocks_total",
    "failed_pulls_per_s": "banyan_worker_failed_pulls_total",
    "refused_per_s": "banyan_worker_refused_total",
}


def _counters(running: Mesh, clients: ClosedClients) -> Figures:
    """What the workers counted, by worker and name, and CPU seconds by process."""
    counters: Figures = {"refused_requests_per_s": clients.num_refused}
    for worker in WORKERS:
        url = f"http://{running.metrics[worker]}/metrics"
        text = httpx2.get(url, timeout=10.0, trust_env=False).text
        for name, metric in _WORKER_COUNTERS.items():
            found = re.search(rf"^{metric}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
            assert found is not None, f"{worker} has no {metric}"
            counters[f"{worker} {name}"] = float(found[1])
    counters |= {f"{name} cores": cpu_s for name, cpu_s in running.cpu_s().items()}
    counters["cores"] = sum(value for name, value in counters.items() if name.endswith(" cores"))
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
        rate, cpu_ms = one["output_tokens_per_s"], _cpu_ms_per_token(one)
        words = f"{rate:.1f} output tokens/s, {cpu_ms:.2f} ms of CPU each"
        print(f"{case}, {setting.name}: {words}", file=sys.stderr, flush=True)
        cores = {n.removesuffix(" cores"): v for n, v in one.items() if n.endswith(" cores")}
        if cores:
            words = ", ".join(f"{name} {value:.3f}" for name, value in cores.items())
            print(f"    cores: {words}", file=sys.stderr, flush=True)
        for worker in WORKERS:
            told = {n.removeprefix(worker): v for n, v in one.items() if n.startswith(worker)}
            if told:
                words = ", ".join(f"{name.strip()} {value:.3g}" for name, value in told.items())
                print(f"    {worker}: {words}", file=sys.stderr, flush=True)
    return figures


def _cpu_ms_per_token(figures: Figures) -> float:
    """Of an output token, its share of the prompt included."""
    return figures["cores"] / figures["output_tokens_per_s"] * 1000


def _rate(rounds: Sequence[dict[str, Figures]], case: str) -> float:
    return median(figures[case]["output_tokens_per_s"] for figures in rounds)


def _cpu_ms(rounds: Sequence[dict[str, Figures]], case: str) -> float:
    return median(_cpu_ms_per_token(figures[case]) for figures in rounds)


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
        "single_cpu_ms_per_token": round(_cpu_ms(single[best_single], case), 2),
        "disaggregated_cpu_ms_per_token": round(_cpu_ms(split[best_split], case), 2),
        "single_threads": best_single,
        "disaggregated_threads": best_split,
        "disaggregated": {name: round(median(p[name] for p in parts), 3) for name in parts[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--window", type=float, default=20.0, help="seconds that count, of each")
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
