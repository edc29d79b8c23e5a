"""How fast the engine is beside the machine's roofs and beside other engines: `make bench-engine`.

Runs one measure after the other on a machine that should have nothing else to do, writes each
result to `results/`, and makes the table of the engine's MEASURED.md of them. What this machine or
this engine does not have is skipped with the reason.

    python load-tests/bench_engine.py [--only roofline prefix] [--rounds 5] [--only-tables]
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bench_overhead import processor
from engine_bench import costs, report, roofline, versus
from engine_bench.bench import Bench
from engine_bench.serving import NotHere
from run import commit

NUM_ROUNDS = 5
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
MEASURES: dict[str, Callable[[Bench], Mapping[str, object]]] = {
    "roofline": roofline.measure,
    "transformers": versus.transformers,
    "llama_cpp": versus.llama_cpp,
    "prefix": costs.prefix,
    "plan": costs.plan,
    "sampling": costs.sampling,
    "grammar": costs.grammar,
    "memory": costs.memory,
}


def flags() -> list[str]:
    """Of the CPU's vector instructions those that decide how fast products are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            has = line.split()
            return [flag for flag in FLAGS if flag in has]
    return []


def run(name: str, bench: Bench) -> None:
    print(f"{name}: ...", flush=True)
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        figures = MEASURES[name](bench)
    except NotHere as reason:
        print(f"{name}: skipped, {reason}")
        return
    arguments = ["--only", name, "--rounds", str(bench.num_rounds)]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", "load-tests/bench_engine.py", *arguments]),
        "machine": {
            "num_cores": bench.num_threads,
            "processor": processor(),
            "flags": flags(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "num_rounds": bench.num_rounds,
        "load_before": load,
        "figures": figures,
    }
    path = report.write(name, result)
    print(f"{name}: {time.monotonic() - started:.0f} s, {path.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--only-tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if not sys.platform.startswith("linux"):
        sys.exit("Memory and CPU flags are read from /proc: this needs Linux.")
    bench = Bench(options.rounds, len(os.sched_getaffinity(0)))
    if not options.only_tables:
        for name in options.only:
            run(name, bench)
    report.write_table()
    print(report.table(report.newest()))


if __name__ == "__main__":
    main()
