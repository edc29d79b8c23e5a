"""Measures that are scripts of their own, and the images: each gives JSON, or is not here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from overhead.processes import free_port

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parent
TIMEOUT_S = 1200.0


class Skipped(Exception):
    """What the measure needs is not on this machine."""


def script(name: str, *arguments: str) -> dict[str, Any]:
    """Runs `load-tests/NAME --json`; a failure is ours to see."""
    path = FOLDER / name
    if not path.exists():
        raise Skipped(f"load-tests/{name} is not there")
    command = [sys.executable, str(path), "--json", *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
    )
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures


def images() -> dict[str, object]:
    """`docker compose up --build --wait` from nothing: no layer of ours is taken from the cache."""
    if shutil.which("docker") is None:
        raise Skipped("there is no docker command")
    if not (ROOT / "docker-compose.yml").exists():
        raise Skipped("there is no docker-compose.yml")
    probe = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise Skipped("no Docker engine answers `docker info`")
    port = f"BANYAN_PORT={free_port()}"
    compose = ["env", port, "docker", "compose", "-p", "banyan-bench-overhead"]
    try:
        started = time.monotonic()
        _run([*compose, "build", "--no-cache"])
        built_s = time.monotonic() - started
        _run([*compose, "up", "--wait", "--wait-timeout", "180"])
        up_s = time.monotonic() - started - built_s
        listed = json.loads(_run([*compose, "images", "--format", "json"]))
    finally:
        _run([*compose, "down", "--volumes", "--timeout", "15"])
    sizes = {f"{row['Repository']}:{row['Tag']}": round(int(row["Size"]) / 1e6) for row in listed}
    return {"build_s": round(built_s), "up_s": round(up_s), "size_mb": dict(sorted(sizes.items()))}


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S
    ).stdout
