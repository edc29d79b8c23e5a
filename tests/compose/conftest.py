"""A Docker engine, the images, and one mesh of containers for all tests here.

`make test-compose` runs them. Without an engine, and without the tool that starts one, they are
skipped, and say so; with one that is broken they fail.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from tests.compose.running import ROOT, SERVICES, TAG, ComposeMesh, docker

TOOL = ROOT.parent / "shared" / "tools" / "docker-host"
PROJECT = "banyan-test"
BUILD_TIMEOUT_S = 600.0


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine with compose, started for these tests if need be, and then also stopped."""
    started = False
    if not engine_answers():
        if not TOOL.exists():
            pytest.skip("no Docker engine answers, and there is no ../shared/tools/docker-host")
        subprocess.run([TOOL, "up"], check=True, timeout=BUILD_TIMEOUT_S)
        started = True
    yield
    if started:
        subprocess.run([TOOL, "down"], check=True)


def engine_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.fixture(scope="session")
def images(engine: None) -> None:
    """All seven, built from this checkout and tagged so that a developer's own stay."""
    ComposeMesh(PROJECT).compose("build", timeout=BUILD_TIMEOUT_S)


@pytest.fixture(scope="session")
def mesh(images: None) -> Iterator[ComposeMesh]:
    """With telemetry, and answers that do not depend on the batch."""
    env = {
        "BANYAN_NUMERICS": "deterministic",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector:4317",
    }
    running = ComposeMesh(PROJECT, env=env, profiles=["observability"])
    running.down()  # what a run that was killed may have left
    try:
        running.up()
        yield running
        check_stop(running)
    finally:
        running.down()
        check_nothing_is_left(running.project)


def check_stop(mesh: ComposeMesh) -> None:
    """All services end by themselves when asked to: exit code 0, not 137."""
    mesh.compose("stop", timeout=120)
    codes = {
        f"{one['Config']['Labels']['com.docker.compose.service']} {one['Name']}": one["State"]
        for one in mesh.containers()
    }
    for name, state in codes.items():
        if name.split()[0] in SERVICES:
            assert (state["ExitCode"], state["OOMKilled"]) == (0, False), (name, state)


def check_nothing_is_left(project: str) -> None:
    label = f"--filter=label=com.docker.compose.project={project}"
    for command in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        assert docker(*command, "--quiet", label) == ""


def image(service: str) -> str:
    return f"banyan/{service}:{TAG}"
