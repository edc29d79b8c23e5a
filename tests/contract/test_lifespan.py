"""A service's process: exit codes, the one sentence, the drain; and what owns its tasks."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter

from banyan_runtime.lifespan import MIDDLE_PER_FULL, Tasks
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.telemetry import json_logger
from banyan_runtime.virtual_loop import UnhandledFailure, run_virtual

PROGRAM = """
import asyncio, gc, os, sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.lifespan import Assembly, Tasks, run_service
from banyan_runtime.settings import read_settings
from banyan_runtime.telemetry import json_logger

@dataclass(frozen=True)
class Settings:
    address: str = "127.0.0.1:0"
    fail: str = ""
    drain_s: float = 0.0

class Service:
    def __init__(self, settings):
        self.settings, self.tasks = settings, Tasks()

    async def start(self):
        if self.settings.fail == "eternal":
            self.tasks.spawn("heart", asyncio.sleep(0.05))
        if self.settings.fail == "brief":
            self.tasks.spawn_brief("errand", self.fail())
        if self.settings.fail == "start":
            await asyncio.sleep(60)

    async def fail(self):
        raise LookupError("an errand failed")

    async def stop(self, grace_s):
        await asyncio.sleep(min(self.settings.drain_s, grace_s))
        if self.settings.fail == "collector":
            print("frozen", gc.get_freeze_count(), "full after", gc.get_threshold()[2])
        await self.tasks.cancel_all()
        print("drained", flush=True)

async def start():
    settings = read_settings(Settings, "BANYAN_TEST_", os.environ)
    network = GrpcNetwork(ChannelSecurity.plain())
    adapters = AsyncExitStack()
    adapters.push_async_callback(network.close)
    server = await network.serve(settings.address, [])
    service = Service(settings)
    print("starting", flush=True)
    await service.start()
    print(f"ready {server.address}", flush=True)
    return Assembly(service, adapters)

sys.exit(run_service(start, grace_s=5.0, logger=json_logger("test", "t1")))
"""

Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_service() -> Started:
    def start(**settings: str) -> subprocess.Popen[str]:
        env = {f"BANYAN_TEST_{key.upper()}": value for key, value in settings.items()}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"it ended without {start!r}: {process.communicate()[1]}")


def test_full_garbage_collections_are_rare_and_pass_over_what_was_there_at_the_start(
    start_service: Started,
) -> None:
    process = start_service(fail="collector")
    wait_line(process, "ready")
    process.terminate()
    words = wait_line(process, "frozen").split()
    assert int(words[1]) > 10_000
    assert words[2:] == ["full", "after", str(MIDDLE_PER_FULL)]
    process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(start_service: Started, number: int) -> None:
    process = start_service()
    wait_line(process, "ready")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("drained\n", 0)
    assert [json.loads(line)["message"] for line in err.splitlines()] == ["stopping"]


def test_a_second_signal_exits_at_once(start_service: Started) -> None:
    process = start_service(drain_s="60")
    wait_line(process, "ready")
    process.terminate()
    assert process.stderr is not None
    assert json.loads(process.stderr.readline())["message"] == "stopping"
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("", 1), "it did not wait for the drain"


def test_a_signal_while_starting_ends_it(start_service: Started) -> None:
    process = start_service(fail="start")
    wait_line(process, "starting")
    time.sleep(0.2)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_taken_port_is_one_sentence_and_exit_2(start_service: Started) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start_service(address=address)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    why = "cannot listen (Address already in use): expected a free address of this machine"
    assert err == f"{address}: {why}\n"


def test_a_wrong_setting_is_one_sentence_and_exit_2(start_service: Started) -> None:
    process = start_service(drain_s="soon")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "BANYAN_TEST_DRAIN_S=soon: expected a number.\n"


def test_the_end_of_an_eternal_task_stops_the_process_with_1(start_service: Started) -> None:
    process = start_service(fail="eternal")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.splitlines()[-1] == "drained"
    logged = [json.loads(line) for line in err.splitlines()]
    assert logged[0]["message"] == "task heart ended, which it never should"


def test_a_failed_errand_is_logged_and_the_service_lives(start_service: Started) -> None:
    process = start_service(fail="brief")
    wait_line(process, "ready")
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    first = json.loads(err.splitlines()[0])
    assert first["message"] == "task errand failed"
    assert "LookupError: an errand failed" in first["error"]


def test_tasks_end_in_the_order_in_which_they_began() -> None:
    async def main() -> list[str]:
        tasks = Tasks()
        ended: list[str] = []

        async def live(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        names = [f"t{i}" for i in range(20)]
        for name in names:
            tasks.spawn(name, live(name))
        await tasks.spawn_brief("errand", asyncio.sleep(1))
        assert len(tasks) == 20
        await tasks.cancel_all()
        assert len(tasks) == 0
        assert ended == names
        return ended

    assert len(run_virtual(main)) == 20


@pytest.mark.parametrize("eternal", [True, False])
def test_a_task_that_fails_fails_a_simulation(eternal: bool) -> None:
    async def fail() -> None:
        raise LookupError("no such thing")

    async def main() -> None:
        tasks = Tasks()
        (tasks.spawn if eternal else tasks.spawn_brief)("doomed", fail())
        await asyncio.sleep(1)
        await tasks.cancel_all()

    with pytest.raises(UnhandledFailure, match="doomed"):
        run_virtual(main)


async def test_metrics_are_served_as_text() -> None:
    registry = CollectorRegistry()
    Counter("banyan_things", "Things.", registry=registry).inc(3)
    server = await serve_metrics_http(registry, "127.0.0.1:0")
    host, _, port = server.address.rpartition(":")

    async def get(path: str) -> str:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return text

    assert "banyan_things_total 3.0" in await get("/metrics")
    assert (await get("/else")).startswith("HTTP/1.1 404")
    with pytest.raises(OSError, match="Address already in use") as taken:
        await serve_metrics_http(registry, server.address)
    assert taken.value.filename == server.address
    await server.close()


def test_a_log_line_is_one_json_object() -> None:
    stream = io.StringIO()
    logger = json_logger("router", "r1", stream)
    logger.info("placed %s", "here", extra={"request_id": "req-1"})
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("broken")
    logger.debug("not shown")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info",
        "service": "router",
        "instance": "r1",
        "message": "placed here",
        "request_id": "req-1",
    }
    assert "ValueError: bad" in second["error"]
    assert json_logger("router", "r1", stream) is logger
    assert len(logger.handlers) == 1
    assert logging.getLogger().handlers != logger.handlers
