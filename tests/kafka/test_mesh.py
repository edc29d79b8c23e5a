"""A mesh of real processes on Kafka: a minute without the broker, and no request notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from tests.e2e.running import RunningMesh
from tests.kafka.brokers import Broker

AWAY_S = 60.0
CATCH_UP_S = 120.0
PAUSE_S = 0.2
NUM_CLIENTS = 2


@contextmanager
def running(folder: Path, broker: Broker) -> Iterator[RunningMesh]:
    mesh = RunningMesh.start(folder, "--runner", "echo", "--bus", broker.url)
    try:
        yield mesh
    finally:
        mesh.stop()


def ask(client: httpx2.Client, mesh: RunningMesh, number: int) -> None:
    prompt = f"question {number}: " + "say it again, " * 8
    body = {"model": "echo", "prompt": prompt, "max_tokens": 16}
    answer = client.post(f"{mesh.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["text"]


class Askers:
    """Clients that ask one question after another; the first wrong answer is kept."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.num_answered = 0
        self.failure: BaseException | None = None
        self._mesh = mesh
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx2.Client(timeout=30) as client:
            while not self._stop.wait(PAUSE_S):
                try:
                    ask(client, self._mesh, self.num_answered)
                except BaseException as failure:
                    self.failure = self.failure or failure
                    return
                with self._lock:
                    self.num_answered += 1

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure


def wait_until(check: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    while not check():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def figure(mesh: RunningMesh, service: str, name: str) -> float:
    """The sum of a metric over its labels, as the service exposes it."""
    address = mesh.process(service)["metrics_address"]
    text = httpx2.get(f"http://{address}/metrics", timeout=30).text
    assert f"# TYPE {name} " in text, f"{service} has no {name}"
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if _is_of(line, name))


def _is_of(line: str, name: str) -> bool:
    return line.startswith((f"{name}{{", f"{name} "))


def num_ended(mesh: RunningMesh) -> float:
    return figure(mesh, "metrics", "banyan_requests_total")


@pytest.mark.timeout(900)
def test_a_minute_without_kafka(broker: Broker, tmp_path: Path) -> None:
    with running(tmp_path / "mesh", broker) as mesh:
        askers = Askers(mesh)
        try:
            wait_until(lambda: askers.num_answered >= 10, lambda: askers.failure)
            broker.down()
            num_before = askers.num_answered
            time.sleep(AWAY_S)
            num_without = askers.num_answered - num_before
            broker.up()
        finally:
            askers.stop()
        # As many as before: nobody waited for the broker.
        assert num_without > AWAY_S * NUM_CLIENTS / PAUSE_S / 10
        wait_until(lambda: num_ended(mesh) >= askers.num_answered, lambda: num_ended(mesh))
        assert num_ended(mesh) == askers.num_answered
        assert figure(mesh, "metrics", "banyan_events_missing_total") == 0
        lag = "banyan_kvstore_index_lag_seconds"
        wait_until(lambda: figure(mesh, "kvstore", lag) < 5, lambda: figure(mesh, "kvstore", lag))
        num_restarts = {one["name"]: one["num_restarts"] for one in mesh.state()["processes"]}
        assert set(num_restarts.values()) == {0}, num_restarts


@pytest.mark.timeout(600)
def test_a_mesh_that_begins_without_kafka(broker: Broker, tmp_path: Path) -> None:
    broker.down()
    with running(tmp_path / "mesh", broker) as mesh, httpx2.Client(timeout=30) as client:
        for number in range(10):
            ask(client, mesh, number)
        broker.up()
        wait_until(lambda: num_ended(mesh) >= 10, lambda: num_ended(mesh))
        assert num_ended(mesh) == 10
