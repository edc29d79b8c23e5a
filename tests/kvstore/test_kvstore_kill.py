"""kill -9 of a real store: what it was given a moment before is on disk."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.core.clusters import hashes
from tests.kvstore.stored import block, pages_of
from tests.kvstore.test_kvstore_main import end, get, put, start

from banyan.v1 import kv_pb2

WRITTEN_WITHIN_S = 60.0


def num_files(folder: Path) -> int:
    return len(list(folder.glob("blocks/??/*")))


def test_a_killed_store_has_its_blocks_again(tmp_path: Path) -> None:
    wanted = hashes(20)
    process, address = start(tmp_path)
    assert asyncio.run(put(address, [block(one) for one in wanted])) == len(wanted)
    deadline = time.monotonic() + WRITTEN_WITHIN_S
    while num_files(tmp_path) < len(wanted):
        assert time.monotonic() < deadline, "the copies to disk do not come"
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)
    process, address = start(tmp_path)
    for one in wanted:
        messages = asyncio.run(get(address, one))
        assert messages == [kv_pb2.KvPages(pages=pages_of([block(one)]))]
    assert end(process) == 0
