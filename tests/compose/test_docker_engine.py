"""The contract of engine and actuator on a real Docker engine, with containers that only sleep.

And that compose takes the copies for its own: it lists them, keeps them, and takes them down.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.autoscaler.compose_contract import ActuatorContract, EngineContract, Stage
from tests.compose.conftest import check_nothing_is_left
from tests.compose.running import docker

from banyan_autoscaler.docker_engine import DockerEngine
from banyan_core.types import Role

IMAGE = "python:3.11-slim-bookworm"
SLEEP = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
COMPOSE_FILE = {
    "services": {
        "decode": {
            "image": IMAGE,
            "command": SLEEP,
            "environment": {"COLOUR": "green", "PROJECT": "${COMPOSE_PROJECT_NAME}"},
            "read_only": True,
            "tmpfs": ["/tmp"],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "mem_limit": "64m",
            "stop_grace_period": "20s",
            "volumes": ["store:/data", "./:/model:ro"],
            "networks": ["default", "back"],
        },
        "router": {"image": IMAGE, "command": SLEEP},
    },
    "networks": {"back": {}},
    "volumes": {"store": {}},
}


class Project:
    """A compose project of one test's own."""

    def __init__(self, folder: Path) -> None:
        self.name = f"banyan-scale-{uuid.uuid4().hex[:8]}"
        self._folder = folder
        (folder / "docker-compose.yml").write_text(json.dumps(COMPOSE_FILE))

    def compose(self, *args: str) -> str:
        command = ("docker", "compose", "-p", self.name, *args)
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def down(self) -> None:
        """One-off containers first: compose leaves them once the services' own are gone."""
        mine = f"--filter=label=com.docker.compose.project={self.name}"
        one_offs = docker("ps", "-aq", mine, "--filter=label=com.docker.compose.oneoff=True")
        if one_offs:
            docker("rm", "--force", *one_offs.split())
        self.compose("down", "--volumes", "--timeout", "5")
        check_nothing_is_left(self.name)


@pytest.fixture
def project(engine: None, tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    try:
        project.compose("up", "-d")
        project.compose("run", "-d", "decode")
        yield project
    finally:
        project.down()


@pytest.fixture
async def stage(project: Project) -> AsyncIterator[Stage]:
    engine = DockerEngine("unix:///var/run/docker.sock")
    yield Stage(engine, project.name)
    await engine.close()


class TestDockerEngine(EngineContract):
    pass


class TestActuator(ActuatorContract):
    async def test_compose_takes_copies_for_its_own(self, stage: Stage, project: Project) -> None:
        await stage.actuator().set_replicas(Role.DECODE, 3)
        listed = project.compose("ps", "--format", "{{.Name}}", "decode").split()
        assert listed == [f"{project.name}-decode-{n}" for n in (1, 2, 3)]
        ids = [await stage.id_of(number) for number in (1, 2, 3)]
        project.compose("up", "-d", "--no-recreate", "--scale", "decode=3")
        project.compose("up", "-d", "--scale", "decode=3")
        assert [await stage.id_of(n) for n in (1, 2)] == ids[:2], "none looks out of date"
        named = project.compose("exec", "-T", "router", "getent", "ahostsv4", "decode")
        assert len({line.split()[0] for line in named.splitlines()}) == 3
        project.compose("down", "--timeout", "5")
        assert await stage.states() == {}

    async def test_copy_is_confined_as_its_template(self, stage: Stage, project: Project) -> None:
        await stage.actuator().set_replicas(Role.DECODE, 2)
        tried = "touch /x 2>/dev/null && exit 1; touch /tmp/x /data/x && ls /model && echo $COLOUR"
        said = project.compose("exec", "-T", "--index", "2", "decode", "sh", "-c", tried)
        assert said.split() == ["docker-compose.yml", "green"]
