"""The store's process: settings checked, and a life over real gRPC that survives a restart."""

from __future__ import annotations

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
from banyan_kvstore.main import run
from banyan_runtime import wire
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork

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
        ("BANYAN_KVSTORE_MEMORY_BYTES", "-1", "BANYAN_KVSTORE_MEMORY_BYTES=-1: expected 0 or more"),
        ("BANYAN_KVSTORE_IO_THREADS", "0", "BANYAN_KVSTORE_IO_THREADS=0: expected 1 or more"),
        ("BANYAN_KVSTORE_DISK_FOLDER", "/dev/null/no", "[Errno"),
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
    env = os.environ | GOOD | {"BANYAN_KVSTORE_DISK_FOLDER": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-c", "from banyan_kvstore.main import main; main()"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r'"address":\s*"([^"]+)"', line)
        if found is not None:
            return process, found.group(1)
    raise AssertionError("the store did not start")


async def test_a_terminated_store_keeps_its_blocks_without_bus_or_index(tmp_path: Path) -> None:
    (wanted,) = hashes(1)
    process, address = start(tmp_path)
    network = GrpcNetwork(ChannelSecurity.plain())
    pages = uploading(pages_of([block(wanted)]))
    response = await network.channel(address).upload(wire.STORE_PUT, pages, 5.0)
    assert response.num_stored_blocks == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    process.stderr and process.stderr.close()
    process, address = start(tmp_path)
    request = kv_pb2.GetRequest(block_hashes=pack([wanted]))
    stream = network.channel(address).stream(wire.STORE_GET, request, 5.0)
    messages = [message async for message in stream]
    assert messages == [kv_pb2.KvPages(pages=pages_of([block(wanted)]))]
    await network.close()
    process.kill()
    process.wait(5)
    process.stderr and process.stderr.close()
