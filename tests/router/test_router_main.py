"""The router's process: a wrong setting is one sentence and exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from banyan_router.main import run

POLICIES = Path(__file__).parents[2] / "infra" / "policies.toml"
GOOD = {
    "BANYAN_ROUTER_ID": "router-0",
    "BANYAN_ROUTER_ADDRESS": "127.0.0.1:0",
    "BANYAN_ROUTER_METRICS_ADDRESS": "127.0.0.1:0",
    "BANYAN_POLICIES": str(POLICIES),
    "BANYAN_DIRECTORY": "static:prefill=127.0.0.1:1;decode=127.0.0.1:2",
    "BANYAN_BUS_URL": "redis://127.0.0.1:1",
    "BANYAN_INDEX_URL": "redis://127.0.0.1:1",
}


def said(env: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(env) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("{")]
    assert output.out == ""
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BANYAN_ROUTER_ADDRESS", None, "BANYAN_ROUTER_ADDRESS is not set"),
        ("BANYAN_ROUTER_SEED", "x", "BANYAN_ROUTER_SEED=x: expected a whole number"),
        ("BANYAN_ROUTER_SEDE", "1", "BANYAN_ROUTER_SEDE is not a setting"),
        ("BANYAN_DIRECTORY", "somewhere", "BANYAN_DIRECTORY=somewhere: expected static:"),
        ("BANYAN_DIRECTORY", None, "BANYAN_DIRECTORY is not set"),
        ("BANYAN_BUS_URL", "somewhere", "BANYAN_BUS_URL=somewhere: "),
        ("BANYAN_INDEX_URL", "here", "BANYAN_INDEX_URL=here: "),
        ("BANYAN_POLICIES", "/nowhere.toml", "BANYAN_POLICIES=/nowhere.toml: expected a readable"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    key: str, value: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {k: v for k, v in (GOOD | {key: value}).items() if v is not None}
    assert said(env, capsys).startswith(message)


def test_a_wrong_policy_name_lists_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policies.toml"
    path.write_text('[routing]\npolicy = "fastest"\n')
    sentence = said(GOOD | {"BANYAN_POLICIES": str(path)}, capsys)
    assert "'fastest' is not known; known are: least_tokens, prefix_cost, random" in sentence


@pytest.mark.parametrize("key", ["BANYAN_ROUTER_ADDRESS", "BANYAN_ROUTER_METRICS_ADDRESS"])
def test_a_busy_port_is_one_sentence(key: str) -> None:
    """In a process of its own: gRPC's event loop outlives the loop that started it."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", "from banyan_router.main import main; main()"],
            env={**os.environ, **GOOD, key: f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 2
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(sentences) == 1
    why = "cannot listen (Address already in use): expected a free address of this machine."
    assert sentences[0] == f"{key}=127.0.0.1:{port}: {why}"
