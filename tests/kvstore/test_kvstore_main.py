"""The store's process: settings checked, and a life over real gRPC that survives a restart."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.clusters import hashes
from tests.kvstore.stored import block, pages_of, uploading

from banyan.v1 import kv_pb2
from banyan_core.hashing import pack
from banyan_core.types import BlockHash
from banyan_kvstore.block import Block
from banyan_kvstore.main import run
from banyan_runtime import wire
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity

GOOD = {
    "BANYAN_KVSTORE_ID": "kvstore-0",
    "BANYAN_KVSTORE_ADDRESS": "127.0.0.1:0",
    "BANYAN_KVSTORE_METRICS_ADDRESS": "127.0.0.1:0",
    "BANYAN_BUS_URL": "redis://127.0.0.1:1",
    "BANYAN_INDEX_URL": "redis://127.0.0.1:1",
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BANYAN_KVSTORE_ID", "shelf", "BANYAN_KVSTORE_ID=shelf: expected an id that starts with"),
        (
            "BANYAN_KVSTORE_MEMORY_BYTES",
            "-1",
            "BANYAN_KVSTORE_MEMORY_BYTES=-1: expected a whole number from 0",
        ),
        (
            "BANYAN_KVSTORE_IO_THREADS",
            "0",
            "BANYAN_KVSTORE_IO_THREADS=0: expected a whole number from 1",
        ),
        ("BANYAN_KVSTORE_DISK_FOLDER", "/dev/null/no", "BANYAN_KVSTORE_DISK_FOLDER=/dev/null/no: "),
        ("BANYAN_INDEX_URL", "here", "BANYAN_INDEX_URL=here: "),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    key: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(GOOD | {key: value}) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert lines[0].startswith(message)


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A store process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from banyan_kvstore.main import main; main()"],
        env=os.environ | GOOD | {"BANYAN_KVSTORE_DISK_FOLDER": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r'"address":\s*"([^"]+)"', line)
        if found is not None:
            return process, found.group(1)
    raise AssertionError("the store did not start")


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=20)
    assert "Traceback" not in rest
    return process.returncode


async def put(address: str, blocks: list[Block]) -> int:
    network = GrpcNetwork(ChannelSecurity.plain())
    upload = uploading(pages_of(blocks))
    response = await network.channel(address).upload(wire.STORE_PUT, upload, 5.0)
    await network.close()
    return response.num_stored_blocks


async def get(address: str, wanted: BlockHash) -> list[kv_pb2.KvPages]:
    network = GrpcNetwork(ChannelSecurity.plain())
    request = kv_pb2.GetRequest(block_hashes=pack([wanted]))
    stream = network.channel(address).stream(wire.STORE_GET, request, 5.0)
    messages = [message async for message in stream]
    await network.close()
    return messages


def test_a_terminated_store_keeps_its_blocks_without_bus_or_index(tmp_path: Path) -> None:
    wanted, _ = hashes(2)
    process, address = start(tmp_path)
    assert asyncio.run(put(address, [block(wanted)])) == 1
    assert end(process) == 0
    process, address = start(tmp_path)
    messages = asyncio.run(get(address, wanted))
    assert messages == [kv_pb2.KvPages(pages=pages_of([block(wanted)]))]
    assert end(process) == 0
