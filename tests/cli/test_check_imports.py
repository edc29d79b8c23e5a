"""The check that each package declares what it imports finds what was planted."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_imports import complain, read_package

PYPROJECT = """
[project]
name = "banyan-plant"
dependencies = ["banyan-core", "Prometheus_Client>=0.26"]
[project.optional-dependencies]
torch = ["torch>=2.13"]
"""
HONEST = """
import json
import banyan_core
from prometheus_client import Counter
def later():
    import torch
"""


def planted(folder: Path, source: str) -> list[str]:
    package = folder / "libs" / "plant"
    (package / "src" / "banyan_plant").mkdir(parents=True)
    (package / "pyproject.toml").write_text(PYPROJECT)
    (package / "src" / "banyan_plant" / "plant.py").write_text(source)
    return list(complain(read_package(package / "pyproject.toml")))


def test_what_is_declared_may_be_imported(tmp_path: Path) -> None:
    assert planted(tmp_path, HONEST) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import redis", "redis"),
        ("import grpc.aio", "grpcio"),
        ("from google.protobuf import message", "protobuf"),
        ("from opentelemetry.sdk.trace import TracerProvider", "opentelemetry-sdk"),
        ("from banyan.v1 import kv_pb2", "banyan-proto"),
        ("from banyan_router import main", "banyan-router"),
        ("def later():\n    import numpy", "numpy"),
    ],
)
def test_what_is_not_declared_is_found(tmp_path: Path, line: str, name: str) -> None:
    place = "libs/plant/src/banyan_plant/plant.py"
    expected = f"banyan-plant: {place} imports {name}, which is not declared"
    assert planted(tmp_path, f"{HONEST}\n{line}\n") == [expected]


def test_what_is_never_imported_is_found(tmp_path: Path) -> None:
    source = HONEST.replace("import banyan_core", "")
    assert planted(tmp_path, source) == ["banyan-plant: banyan-core is declared and never imported"]
