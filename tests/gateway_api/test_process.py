"""The gateway's own process: settings that are wrong, a busy port, and a stop by signal."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx2
import pytest

from banyan_gateway.main import run

GOOD = {
    "BANYAN_GATEWAY_ID": "gateway-0",
    "BANYAN_GATEWAY_ADDRESS": "127.0.0.1:0",
    "BANYAN_GATEWAY_RUNNER": "echo",
    "BANYAN_DIRECTORY": "static:",
    "BANYAN_BUS_URL": "redis://127.0.0.1:1",
}


async def start(settings: dict[str, str]) -> asyncio.subprocess.Process:
    env = {k: v for k, v in os.environ.items() if not k.startswith("BANYAN_")} | settings
    pipe = asyncio.subprocess.PIPE
    code = "from banyan_gateway.main import main; main()"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=env, stdout=pipe, stderr=pipe
    )


def refusal(settings: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a gateway which cannot start leaves."""
    assert run(settings) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    lines: list[str] = errors.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BANYAN_GATEWAY_ADDRESS": "nowhere"}, "BANYAN_GATEWAY_ADDRESS"),
        ({"BANYAN_GATEWAY_ADDRESS": "0.0.0.0:0"}, "BANYAN_ALLOW_OPEN=1"),
        ({"BANYAN_GATEWAY_RUNNER": "torch"}, "BANYAN_GATEWAY_MODEL is not set"),
        ({"BANYAN_GATEWAY_RUNNER": "torch", "BANYAN_GATEWAY_MODEL": "/none"}, "does not exist"),
        ({"BANYAN_GATEWAY_KEY_FILE": "/none"}, "key file"),
        ({"BANYAN_ADAPTERS": "/none"}, "BANYAN_ADAPTERS=/none: expected a folder"),
        ({"BANYAN_GATEWAY_BLOCK_SIZE": "0"}, "BANYAN_GATEWAY_BLOCK_SIZE=0"),
        ({"BANYAN_GATEWAY_NUMERIC": "fast"}, "BANYAN_GATEWAY_NUMERICS"),
        ({"BANYAN_DIRECTORY": "phone book"}, "BANYAN_DIRECTORY"),
    ],
)
def test_wrong_setting(
    change: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(GOOD | change, capsys)


def test_keys_need_a_mesh_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    path.write_text(f"one:{'0' * 64}\n")
    assert "BANYAN_MESH_SECRET" in refusal(GOOD | {"BANYAN_GATEWAY_KEY_FILE": str(path)}, capsys)


def test_busy_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal(GOOD | {"BANYAN_GATEWAY_ADDRESS": address}, capsys)
    assert line.startswith(f"BANYAN_GATEWAY_ADDRESS={address}: cannot listen (Address already in")


async def test_serves_and_stops_by_signal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await start(GOOD | {"BANYAN_GATEWAY_ADDRESS": address})
    assert process.stderr is not None
    line = await process.stderr.readline()
    assert b'"serving"' in line
    async with httpx2.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.get("/health")).status_code == 200
        response = await client.get("/ready")
        assert response.status_code == 503
        assert "router" in response.json()["reason"]
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
