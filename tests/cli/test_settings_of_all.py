"""All seven services refuse the same wrong settings in the same way: one sentence, exit code 2."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from banyan_autoscaler.main import run as run_autoscaler
from banyan_core.types import Role
from banyan_gateway.main import run as run_gateway
from banyan_kvstore.main import run as run_kvstore
from banyan_metrics.main import run as run_metrics
from banyan_router.main import run as run_router
from banyan_worker.main import run as run_worker

RUN: dict[str, Callable[[Mapping[str, str]], int]] = {
    "autoscaler": run_autoscaler,
    "decode": partial(run_worker, Role.DECODE),
    "gateway": run_gateway,
    "kvstore": run_kvstore,
    "metrics": run_metrics,
    "prefill": partial(run_worker, Role.PREFILL),
    "router": run_router,
}
HAVE_RUNNER = ("decode", "gateway", "prefill")
SHARED = {
    "BANYAN_POLICIES": str(Path(__file__).parents[2] / "infra" / "policies.toml"),
    "BANYAN_DIRECTORY": "static:",
    "BANYAN_BUS_URL": "redis://127.0.0.1:1",
    "BANYAN_INDEX_URL": "redis://127.0.0.1:1",
}
LISTEN = "HOST:PORT, port 0 to 65535"
IN_USE = "cannot listen (Address already in use): expected a free address of this machine"


def prefix(service: str) -> str:
    return f"BANYAN_{service.upper()}_"


def good(service: str) -> dict[str, str]:
    own = {"ID": f"{service}-0", "ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0"}
    if service in HAVE_RUNNER:
        own["RUNNER"] = "echo"
    return SHARED | {prefix(service) + key: value for key, value in own.items()}


@pytest.fixture(params=sorted(RUN))
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ID", "", "text that is not empty"),
        ("ADDRESS", "foo", LISTEN),
        ("ADDRESS", "127.0.0.1:99999", LISTEN),
        ("METRICS_ADDRESS", "foo", LISTEN),
        ("METRICS_ADDRESS", "127.0.0.1:-1", LISTEN),
        ("GRACE_S", "-1", "0 or more seconds"),
        ("GRACE_S", "inf", "0 or more seconds"),
    ],
)
def test_own_settings(
    service: str, name: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = prefix(service) + name
    assert RUN[service](good(service) | {key: value}) == 2
    said = capsys.readouterr().err.removesuffix("\n")
    assert said.removesuffix(" or nothing.").removesuffix(".") == (
        f"{key}={value}: expected {expected}"
    )


@pytest.mark.parametrize(
    "url", ["kafka:nope", "kafka://h", "kafka://h:1,", "redis://h:99999", "redis://", "h:6379", ""]
)
def test_bus_url(service: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert RUN[service](good(service) | {"BANYAN_BUS_URL": url}) == 2
    said = capsys.readouterr().err
    expected = "redis://HOST:PORT or kafka://HOST:PORT[,HOST:PORT]"
    assert said == f"BANYAN_BUS_URL={url}: expected {expected}.\n"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"SECURITY": "TLS"}, "BANYAN_KAFKA_SECURITY=TLS: expected one of PLAINTEXT, SSL,"),
        ({"SECURITY": "SASL_SSL"}, "BANYAN_KAFKA_USERNAME is not set: expected text, which"),
        ({"SECURITY": "SSL", "CA_FILE": "/none"}, "BANYAN_KAFKA_CA_FILE=/none: expected a"),
        ({"MECHANISM": "GSSAPI"}, "BANYAN_KAFKA_MECHANISM=GSSAPI: expected one of PLAIN,"),
    ],
)
def test_kafka_access(
    service: str, change: dict[str, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka = {f"BANYAN_KAFKA_{key}": value for key, value in change.items()}
    env = good(service) | kafka | {"BANYAN_BUS_URL": "kafka://127.0.0.1:1"}
    assert RUN[service](env) == 2
    said = capsys.readouterr().err
    assert said.startswith(expected) and said.count("\n") == 1


def test_topics_file(service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "topics.yaml"
    file.write_text("request.events: {partitions: 0}")
    env = good(service) | {"BANYAN_BUS_URL": "kafka://127.0.0.1:1", "BANYAN_TOPICS": str(file)}
    assert RUN[service](env) == 2
    said = capsys.readouterr().err
    wrong = "request.events.retention_hours is missing: expected a whole number from 1"
    assert said == f"{file}: {wrong}.\n"


def test_misspelt_shared_setting(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert RUN[service](good(service) | {"BANYAN_DIRECTORYY": "x"}) == 2
    said = capsys.readouterr().err
    assert said.startswith("BANYAN_DIRECTORYY is not a setting: did you mean BANYAN_DIRECTORY")
    assert said.count("\n") == 1


def start(service: str, change: dict[str, str]) -> subprocess.Popen[str]:
    """In a process of its own: gRPC's event loop outlives the loop that started it."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from banyan_{service}.main import main; main()"],
        env=good(service) | change,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_busy_address(service: str) -> None:
    key = f"{prefix(service)}ADDRESS"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start(service, {key: address})
        _, said = process.communicate(timeout=60)
    assert (said, process.returncode) == (f"{key}={address}: {IN_USE}.\n", 2)


def test_busy_metrics_address(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = f"{prefix(service)}METRICS_ADDRESS"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert RUN[service](good(service) | {key: address}) == 2
    assert capsys.readouterr().err == f"{key}={address}: {IN_USE}.\n"


def test_record_that_cannot_be_written(service: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = f"{prefix(service)}RECORD"
    assert RUN[service](good(service) | {key: "/nowhere/at/all"}) == 2
    said = capsys.readouterr().err
    why = "expected a place to write to (No such file or directory)"
    assert said == f"{key}=/nowhere/at/all: {why}.\n"


def test_each_says_where_it_serves_and_records(service: str, tmp_path: Path) -> None:
    record = tmp_path / "record"
    process = start(service, {f"{prefix(service)}RECORD": str(record)})
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    while "address" not in line:
        line = json.loads(process.stderr.readline())
    assert "serv" in line["message"] and not line["address"].endswith(":0")
    process.terminate()
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in rest) == (0, False), rest
    assert record.exists()
