"""What a mesh costs that nobody asks anything: CPU of all its processes, the supervisor's too."""

from __future__ import annotations

import time
from pathlib import Path

from overhead.processes import mesh, tree_cpu_s

SETTLE_S = 5.0
WATCH_S = 20.0


def measure() -> dict[str, object]:
    with mesh() as idle:
        time.sleep(SETTLE_S)
        before, started = _cpu_s(idle.pids), time.monotonic()
        time.sleep(WATCH_S)
        after, elapsed_s = _cpu_s(idle.pids), time.monotonic() - started
        cores = {name: (after[name] - before[name]) / elapsed_s for name in before}
        return {
            "watched_s": round(elapsed_s, 1),
            "cores": round(sum(cores.values()), 4),
            "cores_by_process": {name: round(value, 4) for name, value in cores.items()},
            "resident_mb": {name: _resident_mb(pid) for name, pid in idle.pids.items()},
        }


def _cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """The services are the supervisor's children and counted by themselves."""
    seconds = {name: tree_cpu_s(pid) for name, pid in pids.items()}
    seconds["supervisor"] -= sum(value for name, value in seconds.items() if name != "supervisor")
    return seconds


def _resident_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("VmRSS:"))
    return round(int(resident.split()[1]) / 1024)
