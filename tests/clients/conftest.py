"""One mesh of real processes with the demo model for all clients, and ways to run them.

make test-clients
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clients.environments import environment
from tests.e2e.running import RunningMesh

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT_TIMEOUT_S = 120
IDLE_TIMEOUT_S = 20.0


class ClientMesh(RunningMesh):
    """A mesh, and what its clients do to it."""

    def script(self, client: str, name: str, *arguments: str) -> list[str]:
        """The command that runs a script in a client's environment against this mesh."""
        python = environment(client) / "python"
        return [str(python), str(SCRIPTS / f"{name}.py"), self.url, self.model(), *arguments]

    def told(self, client: str, name: str, *arguments: str) -> dict[str, Any]:
        """What a script says of its questions, as one JSON object."""
        done = subprocess.run(
            self.script(client, name, *arguments),
            capture_output=True,
            text=True,
            timeout=SCRIPT_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    def heard(self, client: str, name: str, *, kill_at: int | None = None) -> dict[str, Any]:
        """One stream, read by a client that prints each piece; may lose its worker on the way."""
        command = self.script(client, name, "stream")
        pieces: list[str] = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said: dict[str, Any] = json.loads(line)
                if "piece" not in said:
                    return said | {"text": "".join(pieces)}
                pieces.append(said["piece"])
                if len(pieces) == kill_at:
                    self.kill_the_streaming_worker()
        pytest.fail(f"{client} ended with {process.returncode} and without a last word")

    def workers(self) -> list[str]:
        processes = self.state()["processes"]
        return [one["name"] for one in processes if one["service"] in ("prefill", "decode")]

    def kill_the_streaming_worker(self) -> None:
        running = [name for name in self.workers() if self.num_running(name)]
        assert running, "the answer ended before its worker could be killed"
        name = running[0]
        num_restarts = self.process(name)["num_restarts"]
        self.kill(name)
        self.killed = (name, num_restarts)

    def wait_idle(self) -> None:
        """Until no worker has a sequence of anybody."""
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        while any(self.num_running(name) for name in self.workers()):
            assert time.monotonic() < deadline, "work goes on that nobody waits for"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    running = ClientMesh.start(folder, "--numerics", "deterministic", "--prefill", "2")
    assert isinstance(running, ClientMesh)
    yield running
    running.stop()
