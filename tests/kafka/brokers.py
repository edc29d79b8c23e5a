"""Real Kafka brokers of a test's own: started, stopped, killed and started again on their data."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

_START_TIMEOUT_S = 180.0  # JVMs on a busy machine
_READY = "Kafka Server started"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Broker:
    """One KRaft node, broker and controller, listening in plain text unless `settings` differ."""

    def __init__(
        self,
        home: Path,
        folder: Path,
        *,
        node: int = 1,
        controllers: Mapping[int, int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._home = home
        self._folder = folder
        self.port = free_port()
        controllers = controllers or {node: free_port()}
        plain = f"PLAINTEXT://127.0.0.1:{self.port}"
        self._settings = {
            "KAFKA_NODE_ID": str(node),
            "KAFKA_PROPERTIES": str(folder / "server.properties"),
            "KAFKA_LOG_DIRS": str(folder / "data"),
            "KAFKA_LISTENERS": f"{plain},CONTROLLER://127.0.0.1:{controllers[node]}",
            "KAFKA_ADVERTISED_LISTENERS": plain,
            "KAFKA_CONTROLLER_QUORUM_VOTERS": ",".join(
                f"{number}@127.0.0.1:{port}" for number, port in controllers.items()
            ),
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_HEAP_OPTS": "-Xmx256m",
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def launch(self) -> None:
        """Start it and return at once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._home / "bin" / "container-start")],
                env={**os.environ, **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            log = (self._folder / "log").read_text(errors="replace")
            if _READY in log:
                return
            assert self._process is not None
            assert self._process.poll() is None, f"Kafka ended: {log[-2000:]}"
            time.sleep(0.1)
        raise AssertionError(f"Kafka did not start: {log[-2000:]}")

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def up(self) -> None:
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        """As an operator does: it hands its leaderships on first."""
        self._end(signal.SIGTERM)

    def down(self) -> None:
        """As a crash does. What was acknowledged is on its disk."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait(60)
        self._process = None

    def remove(self) -> None:
        self.down()
        shutil.rmtree(self._folder, ignore_errors=True)


def cluster(home: Path, folder: Path, num_brokers: int) -> list[Broker]:
    """Brokers that know one another, running."""
    controllers = {node: free_port() for node in range(1, num_brokers + 1)}
    brokers = [
        Broker(home, folder / str(node), node=node, controllers=controllers) for node in controllers
    ]
    for broker in brokers:
        broker.launch()
    for broker in brokers:
        broker.await_ready()
    return brokers
