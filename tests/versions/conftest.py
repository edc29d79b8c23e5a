"""A mesh of ours, and a peer of each other version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.e2e.running import RunningMesh
from tests.versions.peer import Peer
from tests.versions.stubs import next_version, released

from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity

VERSIONS = [*released(), next_version()]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """Ours: all services as processes, with the echo runner."""
    running = RunningMesh.start(tmp_path_factory.mktemp("mesh"), "--runner", "echo")
    yield running
    running.stop()


@pytest.fixture
async def network() -> AsyncIterator[GrpcNetwork]:
    network = GrpcNetwork(ChannelSecurity.plain())
    yield network
    await network.close()


@pytest.fixture(params=VERSIONS, ids=repr)
def peer(mesh: RunningMesh, network: GrpcNetwork, request: pytest.FixtureRequest) -> Peer:
    return Peer(mesh, network, request.param)
