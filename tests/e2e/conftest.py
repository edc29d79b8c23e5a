"""One mesh of real processes with the demo model, 2+2 workers, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.running import RunningMesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    running = RunningMesh.start(folder, "--numerics", "deterministic")
    yield running
    running.stop()
