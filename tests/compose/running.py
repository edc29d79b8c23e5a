"""A mesh of containers, as `docker compose` starts it, and ways to ask, to harm and to end it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openai import OpenAI

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("autoscaler", "decode", "gateway", "kvstore", "metrics", "prefill", "router")
TAG = "test"
UP_TIMEOUT_S = 300.0
VIEW = """
import asyncio, json
from banyan.v1 import router_pb2
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.wire import VIEW

async def main():
    network = GrpcNetwork(ChannelSecurity.plain())
    view = await network.channel("127.0.0.1:50051").unary(VIEW, router_pb2.ViewRequest(), 5)
    await network.close()
    print(json.dumps({w.worker.worker_id: w.live and not w.load.draining for w in view.workers}))

asyncio.run(main())
"""
METRICS = """
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:9100/metrics").read().decode())
"""


class ComposeMesh:
    """One project of compose. Settings of the developer's own shell and `.env` are kept out."""

    def __init__(
        self,
        project: str,
        *,
        files: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        profiles: Sequence[str] = (),
    ) -> None:
        self.project = project
        self.port, self.prometheus_port = free_port(), free_port()
        self._command = ["docker", "compose", "-p", project, "--env-file", os.devnull]
        self._command += [f"--file={file}" for file in (ROOT / "docker-compose.yml", *files)]
        self._command += [f"--profile={profile}" for profile in profiles]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BANYAN", "COMPOSE"))}
        own = {
            "BANYAN_VERSION": TAG,
            "BANYAN_PORT": str(self.port),
            "BANYAN_PROMETHEUS_PORT": str(self.prometheus_port),
        }
        self._env = inherited | own | dict(env or {})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *args: str, timeout: float = 60.0) -> str:
        """What `docker compose ARGS` printed. Raises AssertionError with its words if it fails."""
        command = [*self._command, *args]
        done = subprocess.run(
            command, cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{' '.join(args)}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
        return done.stdout

    def up(self, *options: str) -> None:
        """Until every container is healthy; what broke is told with its last words."""
        try:
            self.compose("up", "-d", "--wait", "--no-build", *options, timeout=UP_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail=15')[-8000:]}") from None

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", timeout=UP_TIMEOUT_S)

    # ------------------------------------------------------------ what runs

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What Docker says of the containers, stopped ones too, oldest replica first."""
        ids = self.compose("ps", "--all", "--quiet", *filter(None, [service])).split()
        return sorted(inspect(ids), key=lambda one: str(one["Name"]))

    def view(self) -> dict[str, bool]:
        """The workers that the router knows, and whether it would place on them."""
        seen: dict[str, bool] = json.loads(self.run_in("router", VIEW))
        return seen

    def run_in(self, service: str, script: str) -> str:
        return self.compose("exec", "-T", service, "python", "-c", script)

    def num_running(self, container_id: str) -> int:
        """Sequences in the batch of the worker in this container, from its own metrics."""
        text = docker("exec", container_id, "python", "-c", METRICS)
        lines = [one for one in text.splitlines() if one.startswith("vllm:num_requests_running{")]
        return round(float(lines[0].rpartition(" ")[2]))

    def restore(self) -> None:
        """Start again what was killed, and wait until all is healthy."""
        stopped = [one["Id"] for one in self.containers() if not one["State"]["Running"]]
        if stopped:
            docker("start", *stopped)
        wait_until(self.is_healthy, "all containers are healthy")

    def is_healthy(self) -> bool:
        states = [one["State"] for one in self.containers()]
        return all(
            state.get("Health", {"Status": "healthy"})["Status"] == "healthy" for state in states
        )

    # ------------------------------------------------------------ asking

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def stream(
        self, prompt: str, on_chunk: Callable[[int], None] = lambda _: None, **options: Any
    ) -> str:
        """A streamed completion; `on_chunk` gets the number of chunks with text so far."""
        text, num_chunks = "", 0
        with self.client() as client:
            answer = client.completions.create(
                model="banyan-demo", prompt=prompt, stream=True, **options
            )
            for chunk in answer:
                for choice in chunk.choices:
                    text += choice.text
                    num_chunks += bool(choice.text)
                    on_chunk(num_chunks)
        return text


def docker(*args: str) -> str:
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
    return done.stdout


def inspect(ids: list[str]) -> list[dict[str, Any]]:
    """What Docker says of those that are there; one may have gone since its id was learnt."""
    if not ids:
        return []
    done = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, timeout=60)
    gone = "no such object" in done.stderr.lower()
    assert done.returncode == 0 or gone, f"docker inspect: {done.stderr}"
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.5)
