"""What Banyan costs beside doing without it: `make bench-overhead`.

Runs one measure after the other on a machine that should have nothing else to do, writes each
result to `results/`, and makes the READMEs' tables of them. What a machine lacks is skipped with
the reason; what is there and does not work fails.

    python load-tests/bench_overhead.py [--only gateway peers] [--only-tables]
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

from overhead import gateway, idle, outside, peers, report
from run import commit

MEASURES: dict[str, Callable[[], Mapping[str, object]]] = {
    "gateway": gateway.measure,
    "place": lambda: outside.script("place.py"),
    "idle": idle.measure,
    "disaggregation": lambda: outside.script(
        "disaggregation.py", "--rounds", "2", "--window", "20"
    ),
    "peers": peers.measure,
    "images": outside.images,
}


def processor() -> str:
    """The name that the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def run(name: str) -> None:
    print(f"{name}: ...", flush=True)
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        figures = MEASURES[name]()
    except (outside.Skipped, peers.NotHere) as reason:
        print(f"{name}: skipped, {reason}")
        return
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", "load-tests/bench_overhead.py", "--only", name]),
        "machine": {
            "num_cores": os.cpu_count(),
            "processor": processor(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "load_before": load,
        "figures": figures,
    }
    path = report.write(name, result)
    print(f"{name}: {time.monotonic() - started:.0f} s, {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--only-tables", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("CPU is read from /proc: this needs Linux.")
    if not options.only_tables:
        for name in options.only:
            run(name)
    for path in report.write_tables():
        print(f"wrote the table of {path.relative_to(report.ROOT)}")
    print(report.table(report.newest()))


if __name__ == "__main__":
    main()
