"""How long an answer pauses when the worker that streams it is killed with kill -9.

Starts a mesh of its own, streams the same answer again and again, alternately undisturbed and with
the streaming worker killed at the middle, and compares the longest gap between two tokens of each.
Every answer must be equal to the first: a token lost or doubled fails the run.

    python load-tests/kill.py --rounds 10 [--runner torch --numerics deterministic]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2

BANYAN = str(Path(sys.executable).parent / "banyan")
PROMPT = "The amber key opens door 4821. The silver key opens door 1937. Tell me about the keys."
NUM_TOKENS = 300
SETTLE_S = 4.0
"""After a kill: the supervisor brings the worker back, the router sees it."""


@dataclass(frozen=True, slots=True)
class Stream:
    text: str
    longest_gap_ms: float
    num_recoveries: int


class Mesh:
    """One `banyan up`, and the client that reads from it."""

    def __init__(self, folder: Path, client: httpx2.Client) -> None:
        self._folder = folder
        self._client = client

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        return state

    def model(self) -> str:
        models = self._client.get(f"{self.state()['gateway_url']}/v1/models").json()
        return str(models["data"][0]["id"])

    def stream(self, model: str, at: Callable[[int], None]) -> Stream:
        """Read one answer; `at` is called with the number of chunks so far."""
        url = self.state()["gateway_url"]
        body = {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        text, request_id, num_chunks = "", "", 0
        last, longest = 0.0, 0.0
        with self._client.stream("POST", f"{url}/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter()
                chunk = json.loads(line.removeprefix("data: "))
                request_id = chunk["id"]
                text += chunk["choices"][0]["text"]
                longest = max(longest, now - last) if last else 0.0
                last = now
                num_chunks += 1
                at(num_chunks)
        view = self._client.get(f"{url}/v1/requests/{request_id}").json()
        return Stream(text, longest * 1e3, view["num_recoveries"])

    def kill_streaming_worker(self) -> None:
        """The one whose own metrics say that a sequence runs there."""
        for process in self.state()["processes"]:
            if process["service"] in ("prefill", "decode"):
                page = self._client.get(f"http://{process['metrics_address']}/metrics").text
                running = [row for row in page.splitlines() if "num_requests_running{" in row]
                if running and float(running[0].rpartition(" ")[2]):
                    os.kill(process["pid"], signal.SIGKILL)
                    return
        raise RuntimeError("nothing streams: the answer ended before its middle was read")


@contextmanager
def running(runner: str, numerics: str) -> Iterator[Mesh]:
    with tempfile.TemporaryDirectory() as folder, httpx2.Client(timeout=60) as client:
        options = ["--runner", runner, "--numerics", numerics, "--prefill", "1", "--decode", "2"]
        place = ["--state-dir", folder]
        subprocess.run([BANYAN, "up", "--detach", "--port", "0", *place, *options], check=True)
        try:
            yield Mesh(Path(folder), client)
        finally:
            subprocess.run([BANYAN, "down", *place], check=True)


def measure(mesh: Mesh, num_rounds: int) -> dict[str, list[float]]:
    """Longest gaps in ms, calm and killed, alternating."""
    model = mesh.model()
    first = mesh.stream(model, lambda _: None)
    gaps: dict[str, list[float]] = {"calm": [], "killed": []}
    for _ in range(num_rounds):
        calm = mesh.stream(model, lambda _: None)
        killed = mesh.stream(
            model, lambda at: mesh.kill_streaming_worker() if at == NUM_TOKENS // 3 else None
        )
        if not calm.text == killed.text == first.text or not killed.num_recoveries:
            raise RuntimeError("the answers differ, or nothing was recovered")
        gaps["calm"].append(calm.longest_gap_ms)
        gaps["killed"].append(killed.longest_gap_ms)
        time.sleep(SETTLE_S)
    return gaps


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": round(ordered[0], 1),
        "median": round(ordered[len(ordered) // 2], 1),
        "max": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runner", default="echo", choices=("echo", "torch"))
    parser.add_argument("--numerics", default="deterministic", choices=("fast", "deterministic"))
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    with running(options.runner, options.numerics) as mesh:
        gaps = measure(mesh, options.rounds)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "load-tests/kill.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "num_tokens": NUM_TOKENS,
        "num_rounds": options.rounds,
        "longest_gap_ms": {name: summary(values) for name, values in gaps.items()},
        "answers_equal": True,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
