"""The autoscaler acts: a load step brings a second decode worker up, its end takes it down again.

Every answer is compared with that to the same prompt in peace: that a worker joins, or drains away
under a running stream, must not be visible to anybody.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.compose.running import METRICS, ROOT, ComposeMesh, wait_until

SOCKET = Path("/var/run/docker.sock")
OVERRIDE = ROOT / "infra" / "compose" / "autoscale.yaml"
POLICIES = """
[scaling]
period_s = 1.0

[scaling.decode]
policy = "target_tracking"
max_replicas = 2
down_window_s = 20.0
cooldown_s = 1.0

[scaling.decode.target_tracking]
metric = "num_sequences"
target = 2.0
"""
PROMPT = "{number} keys open door {number}. Tell a long story about the amber key."
"""No two are alike: a worker that has a prompt's prefix would get it again, however busy it is."""
GREEDY: dict[str, Any] = {"max_tokens": 100, "temperature": 0, "extra_body": {"ignore_eos": True}}
NUM_CALM, NUM_LOADED = 2, 6
SCALE_TIMEOUT_S = 180.0


pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def autoscaling(mesh: ComposeMesh, tmp_path: Path) -> Iterator[ComposeMesh]:
    """The mesh of all tests, with an autoscaler that may act and has no patience."""
    policies = tmp_path / "policies.toml"
    policies.write_text(POLICIES)
    quick = tmp_path / "quick.yaml"
    mount = f"{policies}:/etc/banyan/policies.toml:ro"
    quick.write_text(json.dumps({"services": {"autoscaler": {"volumes": [mount]}}}))
    scaling = ComposeMesh(
        mesh.project,
        files=[OVERRIDE, quick],
        env={"BANYAN_DOCKER_GID": str(SOCKET.stat().st_gid), **telemetry(mesh)},
    )
    scaling.up("--no-deps", "autoscaler")
    try:
        yield scaling
    finally:
        mesh.up("--no-deps", "autoscaler")
        mesh.up("--no-recreate", "--scale=decode=1")


def telemetry(mesh: ComposeMesh) -> dict[str, str]:
    (now,) = mesh.containers("autoscaler")
    settings = dict(line.split("=", 1) for line in now["Config"]["Env"])
    return {key: text for key, text in settings.items() if key == "OTEL_EXPORTER_OTLP_ENDPOINT"}


class Load:
    """Clients that ask again as soon as they are answered, each until it is told to stop."""

    def __init__(self, mesh: ComposeMesh, pool: ThreadPoolExecutor) -> None:
        self._mesh = mesh
        self._pool = pool
        self._clients: list[tuple[threading.Event, Future[None]]] = []
        self._numbers = itertools.count(1000)
        self.answers: dict[str, str] = {}

    def grow(self, num_clients: int) -> None:
        while len(self._clients) < num_clients:
            done = threading.Event()
            self._clients.append((done, self._pool.submit(self._ask, done)))

    def shrink(self, num_clients: int) -> None:
        """The others stop when their present answer is complete."""
        leaving, self._clients = self._clients[num_clients:], self._clients[:num_clients]
        for done, _ in leaving:
            done.set()
        for _, asked in leaving:
            asked.result(timeout=SCALE_TIMEOUT_S)

    def _ask(self, done: threading.Event) -> None:
        while not done.is_set():
            prompt = PROMPT.format(number=next(self._numbers))
            self.answers[prompt] = self._mesh.stream(prompt, **GREEDY)

    def ask_again(self) -> dict[str, str]:
        """The same prompts, one after the other."""
        return {prompt: self._mesh.stream(prompt, **GREEDY) for prompt in self.answers}


@contextmanager
def loading(mesh: ComposeMesh) -> Iterator[Load]:
    with ThreadPoolExecutor(NUM_LOADED) as pool:
        load = Load(mesh, pool)
        try:
            yield load
        finally:
            load.shrink(0)


def test_a_load_step_brings_a_worker_up_and_down_again(
    mesh: ComposeMesh, autoscaling: ComposeMesh
) -> None:
    with loading(mesh) as load:
        load.grow(NUM_CALM)
        assert len(mesh.containers("decode")) == 1
        load.grow(NUM_LOADED)
        wait_until(lambda: num_decoding(mesh) == 2, "a second one is placed on", SCALE_TIMEOUT_S)
        one, other = mesh.containers("decode")
        assert [one["Name"], other["Name"]] == [f"/{mesh.project}-decode-{n}" for n in (1, 2)]
        wait_until(lambda: mesh.num_running(other["Id"]) > 0, "it serves", SCALE_TIMEOUT_S)

        load.shrink(NUM_CALM)  # the rest goes on while the second worker drains
        wait_until(lambda: len(mesh.containers("decode")) == 1, "it is gone", SCALE_TIMEOUT_S)
        assert mesh.containers("decode")[0]["Id"] == one["Id"]
        assert num_decoding(mesh) == 1
        load.shrink(0)
    assert len(load.answers) >= NUM_LOADED
    assert load.answers == load.ask_again()
    said = figures(autoscaling)
    assert said['banyan_autoscaler_decisions_total{result="applied",role="decode"}'] >= 2
    assert said['banyan_autoscaler_replicas{role="decode"}'] == 1
    logged = autoscaling.compose("logs", "--no-log-prefix", "autoscaler")
    for news in ("replica added", "replica drains", "replica left"):
        assert news in logged


def num_decoding(mesh: ComposeMesh) -> int:
    """Decode workers that the router would place on."""
    return sum(live for name, live in mesh.view().items() if name.startswith("decode"))


def figures(mesh: ComposeMesh) -> dict[str, float]:
    lines = mesh.run_in("autoscaler", METRICS).splitlines()
    pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
