"""What the index's tests write and how, and the kinds of server that they run on."""

from __future__ import annotations

from banyan_core.index_facts import Position
from banyan_core.types import BlockHash
from banyan_runtime.kv_index import KvIndex

EPOCH = 1_800_000_000_123_456_789  # an epoch as they are: more than 53 bits
TTL_S = 60.0
LATE_S = 5.0  # a machine under load may take longer than the lookup's usual limit
KINDS = ("memory", "valkey", "redis", "valkey-cluster", "redis-cluster")


def blocks(count: int, start: int = 0) -> list[BlockHash]:
    return [i.to_bytes(16, "big") for i in range(start, start + count)]


def at(seq: int, epoch: int = EPOCH, *, stale: bool = False) -> Position:
    return Position(epoch, seq, stale)


async def fence_of(index: KvIndex, owner: str = "store-1") -> int:
    token = await index.acquire(owner, 30)
    assert token is not None
    return token


async def put(index: KvIndex, fence: int, holder: str, hashes: list[BlockHash]) -> None:
    await index.replace(fence, holder, at(1), hashes, TTL_S)
