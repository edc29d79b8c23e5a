"""What holds for the images and their containers, before anybody asks the mesh anything."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.compose.conftest import image
from tests.compose.running import SERVICES, ComposeMesh, docker

from banyan_engine.kernels.build import LEVELS, binary_name, cpu_level

HELPER = """
import json
from banyan_engine.kernels.build import READY_MADE
from banyan_engine.kernels.native import loader
loader.wait(60)
print(loader.status)
print(json.dumps(sorted(file.name for file in READY_MADE.iterdir())))
"""


@pytest.mark.parametrize("service", SERVICES)
def test_each_starts_alone_and_says_what_it_misses(images: None, service: str) -> None:
    command = ["docker", "run", "--rm", "--read-only", "--network=none", image(service)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()
    assert all(" is not set: expected " in line for line in done.stderr.splitlines())
    missing = "BANYAN_INDEX_URL" if service in ("kvstore", "router") else "BANYAN_BUS_URL"
    assert f"{missing} is not set: expected" in done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_torch_is_in_the_workers_only(images: None, service: str) -> None:
    script = "import importlib.util as u; print(u.find_spec('torch') is not None)"
    options = ["run", "--rm", "--network=none", "--entrypoint=python"]
    said = docker(*options, image(service), "-c", script)
    assert said.strip() == str(service in ("prefill", "decode"))


@pytest.mark.parametrize("service", ["prefill", "decode"])
def test_workers_bring_the_compiled_helper_and_need_no_place_to_write(
    images: None, service: str
) -> None:
    """Compiled for every level of CPUs; that of this machine is in use."""
    options = ["run", "--rm", "--network=none", "--read-only", "--entrypoint=python"]
    said = docker(*options, image(service), "-c", HELPER).split("\n")
    level = cpu_level()
    assert said[0] == ("absent: no code for this CPU" if level is None else f"in use: {level}")
    assert json.loads(said[1]) == sorted(map(binary_name, LEVELS))


@pytest.mark.parametrize("service", SERVICES)
def test_labels_and_signals(images: None, service: str) -> None:
    (found,) = json.loads(docker("image", "inspect", image(service)))
    config = found["Config"]
    assert config["Labels"]["org.opencontainers.image.title"] == f"banyan-{service}"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][-1] == service


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_may_do_more_than_it_needs(mesh: ComposeMesh, service: str) -> None:
    (container,) = mesh.containers(service)
    host = container["HostConfig"]
    assert container["Config"]["User"] == "10001:10001"
    assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0 and host["NanoCpus"] > 0
    writes = "import os; print(os.getuid()); open('/venv/x', 'w')"
    with pytest.raises(AssertionError, match=r"Read-only file system"):
        mesh.run_in(service, writes)


def test_only_gateway_and_prometheus_can_be_called_and_only_from_here(mesh: ComposeMesh) -> None:
    published = {
        container["Config"]["Labels"]["com.docker.compose.service"]: binding[0]["HostIp"]
        for container in mesh.containers()
        for binding in container["HostConfig"]["PortBindings"].values()
    }
    assert published == {"gateway": "127.0.0.1", "prometheus": "127.0.0.1"}
