"""What only a real index server can do: lose its content or a part of it, be full, be a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from banyan_core.index_facts import Position
from banyan_runtime.kv_index import Fenced, IndexUnavailable
from banyan_runtime.redis_index import CLUSTER_SHARDS, RedisKvIndex

from .redis_servers import Cluster, Server, serve

KINDS = ("valkey", "redis", "valkey-cluster", "redis-cluster")
TTL_S = 60.0
HOLDERS = [f"w{n}" for n in range(24)]
H = [n.to_bytes(16, "big") for n in range(3000)]
AT = Position(1, 1)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with serve(request.param) as started:
        if started is None:
            pytest.skip("redis-server is not on PATH")
        yield started


def nodes_of(server: Server | Cluster) -> list[Server]:
    return server.nodes if isinstance(server, Cluster) else [server]


@pytest.fixture
async def index(server: Server | Cluster) -> AsyncIterator[RedisKvIndex]:
    for node in nodes_of(server):
        with node.client() as client:
            client.flushall()
    async with RedisKvIndex(server.url, lookup_timeout_s=5, write_timeout_s=5) as made:
        yield made


async def fence_of(index: RedisKvIndex, owner: str = "store-1") -> int:
    token = await index.acquire(owner, 30)
    assert token is not None
    return token


async def fill(index: RedisKvIndex, fence: int) -> None:
    for holder in HOLDERS:
        await index.replace(fence, holder, AT, H[:3], TTL_S)


def keys_of(server: Server | Cluster) -> dict[str, int]:
    """Every key, and the ms that it has left."""
    found = {}
    for node in nodes_of(server):
        with node.client() as client:
            found.update({key.decode(): client.pttl(key) for key in client.keys("*")})
    return found


async def test_everything_ends_by_itself(server: Server | Cluster, index: RedisKvIndex) -> None:
    fence = await fence_of(index)
    await fill(index, fence)
    await index.replace(fence, "large", AT, H, TTL_S)
    await index.add(fence, "large", AT, H[:5], TTL_S)
    await index.remove(fence, "large", AT, H[:5], TTL_S)
    await index.drop_holder(fence, "w0")
    keys = keys_of(server)
    assert len(keys) > len(HOLDERS)
    assert all(left_ms > 0 for left_ms in keys.values()), keys


async def test_no_holder_leaves_a_name_behind(
    server: Server | Cluster, index: RedisKvIndex
) -> None:
    """Names of workers change with each of their pods: what is kept of each must end."""
    fence = await fence_of(index)
    for number in range(50):
        await index.replace(fence, f"pod-{number}", AT, H[:1], 0.05)
    await asyncio.sleep(0.1)
    await fill(index, fence)
    names: set[str] = set()
    for node in nodes_of(server):
        with node.client() as client:
            for key in client.keys("*:holders"):
                names.update(name.decode() for name in client.zrange(key, 0, -1))
    assert names == set(HOLDERS)


async def test_a_flushed_server_has_its_writer_write_again(
    server: Server | Cluster, index: RedisKvIndex
) -> None:
    """Of a cluster one node is enough: its writer must hear of it, whatever the lease says."""
    old = await fence_of(index)
    await fill(index, old)
    with nodes_of(server)[-1].client() as client:
        assert client.dbsize() > 0
        client.flushall()
    new = await fence_of(index)
    assert new > old
    with pytest.raises(Fenced):
        await index.replace(old, "w1", AT, H[:1], TTL_S)
    await fill(index, new)
    assert await index.lookup(H[:3]) == dict.fromkeys(HOLDERS, 3)


async def test_tokens_grow_even_if_the_clock_goes_back(
    server: Server | Cluster, index: RedisKvIndex
) -> None:
    """As after a failover to a server whose clock is behind: a fence is from the future."""
    await fence_of(index)
    future = 4_000_000_000_000_000
    key = next(key for key in keys_of(server) if key.endswith(":fence"))
    for node in nodes_of(server):
        with node.client() as client:
            if key.encode() in client.keys("*:fence"):
                client.set(key, future, px=60_000)
    assert await fence_of(index) > future


async def test_a_full_server_takes_no_more_and_still_answers(
    server: Server | Cluster, index: RedisKvIndex
) -> None:
    fence = await fence_of(index)
    await fill(index, fence)
    set_max_memory(server, 1)
    try:
        with pytest.raises(IndexUnavailable, match="maxmemory"):
            await index.replace(fence, "w1", AT, H, TTL_S)
        assert await index.lookup(H[:3]) == dict.fromkeys(HOLDERS, 3)
    finally:
        set_max_memory(server, 0)
    await index.replace(fence, "w1", AT, H, TTL_S)
    assert (await index.lookup(H))["w1"] == len(H)


def set_max_memory(server: Server | Cluster, max_bytes: int) -> None:
    for node in nodes_of(server):
        with node.client() as client:
            client.config_set("maxmemory", max_bytes)


async def test_every_node_has_its_share_of_the_holders(
    server: Server | Cluster, index: RedisKvIndex
) -> None:
    await fill(index, await fence_of(index))
    shards = CLUSTER_SHARDS if isinstance(server, Cluster) else 1
    assert sum(key.endswith(":fence") for key in keys_of(server)) == shards
    for node in nodes_of(server):
        with node.client() as client:
            assert len(client.keys("*:holder:*")) > 0
