"""The wires of the twin: links with delay, back-pressure, partitions, and processes that crash.

Bytes travel in order through `Pipe`s, one each way per call. A crash cuts a process's ports
before anything else: what was in flight from it is lost, nothing that its tasks do afterwards is
seen, and its peers learn of it one link delay later. A partition holds bytes back, as TCP does,
until it heals; calls that it holds for longer than the keepalive break on both sides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from banyan_core.types import NS_PER_S
from banyan_runtime.rpc import Code, RpcError

if TYPE_CHECKING:
    from banyan_runtime.memory_call import Call
    from banyan_runtime.memory_network import MemoryNetwork
    from banyan_runtime.memory_server import MemoryServer

DEFAULT_DELAY_NS = 100_000
KEEPALIVE_S = 20.0
WINDOW_BYTES = 1 << 20
_MESSAGE_OVERHEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class End:
    """The last thing in a pipe: its writer is done, or `error` says why it broke."""

    error: RpcError | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """Overtakes nothing, but is not read: it acts when it arrives."""

    act: Callable[[], object]


Item = bytes | End | Signal


@dataclass(frozen=True, slots=True)
class _Delay:
    source: str
    target: str
    method: str
    delay_ns: int


class MemoryMesh:
    """What all processes of one simulation share. Patterns are those of fnmatch."""

    def __init__(self) -> None:
        self.hosts: dict[str, MemoryNetwork] = {}
        self.servers: dict[str, MemoryServer] = {}
        self.calls: dict[Call, None] = {}
        self._delays: list[_Delay] = []
        self._delay_memo: dict[tuple[str, str, str], int] = {}
        self._partitions: list[tuple[str, str]] = []
        self._next_port = 1

    # ------------------------------------------------------------ links

    def set_delay(
        self, delay_ns: int, *, source: str = "*", target: str = "*", method: str = "*"
    ) -> None:
        """One-way delay from host to host, for methods such as `/banyan.v1.Worker/*`.

        The rule set last wins. What is on its way keeps the delay with which it left.
        """
        self._delays.append(_Delay(source, target, method, delay_ns))
        self._delay_memo.clear()

    def delay_ns(self, source: str, target: str, method: str) -> int:
        key = (source, target, method)
        if key not in self._delay_memo:
            self._delay_memo[key] = self._find_delay(*key)
        return self._delay_memo[key]

    def _find_delay(self, source: str, target: str, method: str) -> int:
        for rule in reversed(self._delays):
            if (
                fnmatchcase(source, rule.source)
                and fnmatchcase(target, rule.target)
                and fnmatchcase(method, rule.method)
            ):
                return rule.delay_ns
        return DEFAULT_DELAY_NS

    def partition(self, source: str, target: str, *, both_ways: bool = True) -> None:
        """Hold back all bytes between hosts that match, until `heal`."""
        self._partitions.append((source, target))
        if both_ways:
            self._partitions.append((target, source))
        for call in list(self.calls):
            call.watch_partition()

    def heal(self) -> None:
        """End all partitions; what was held back arrives now, in order."""
        self._partitions.clear()
        for call in list(self.calls):
            call.up.deliver_due()
            call.down.deliver_due()

    def is_blocked(self, source: str, target: str) -> bool:
        return any(fnmatchcase(source, a) and fnmatchcase(target, b) for a, b in self._partitions)

    # ------------------------------------------------------------ processes

    def free_port(self) -> int:
        self._next_port += 1
        return self._next_port - 1

    def crash(self, host_id: str) -> None:
        """Cut the ports of this process, then cancel its handlers. Its own tasks are the caller's.

        A new MemoryNetwork with the same id is its restart. Does nothing for an unknown host.
        """
        network = self.hosts.pop(host_id, None)
        if network is None:
            return
        network.is_cut = True
        servers = [server for server in self.servers.values() if server.network is network]
        for server in servers:
            del self.servers[server.address]
        for call in list(self.calls):
            call.cut(network)
        for server in servers:
            server.cancel_handlers()


class Pipe:
    """One direction of one call: messages in order, at most about `WINDOW_BYTES` under way."""

    def __init__(self, mesh: MemoryMesh, source: str, target: str, method: str) -> None:
        self._mesh = mesh
        self._link = (source, target, method)
        self._in_flight: deque[tuple[int, Item]] = deque()
        self._arrived: deque[bytes | End] = deque()
        self._used_bytes = 0
        self._last_due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._is_ended = False
        self._is_dead = False

    @property
    def is_blocked(self) -> bool:
        return self._mesh.is_blocked(self._link[0], self._link[1])

    async def send(self, data: bytes) -> None:
        """Wait for room, then put a message on its way. After the end it goes nowhere."""
        while self._used_bytes >= WINDOW_BYTES and not self._is_ended:
            self._writable.clear()
            await self._writable.wait()
        if not self._is_ended:
            self._used_bytes += len(data) + _MESSAGE_OVERHEAD_BYTES
            self._depart(data)

    def finish(self, error: RpcError | None = None) -> None:
        """The writer's last word. What comes after it is dropped."""
        if not self._is_ended:
            self._end(End(error))

    def signal(self, act: Callable[[], object]) -> None:
        """Call `act` at the far side, after all that was sent before."""
        if not self._is_dead:
            self._depart(Signal(act))

    async def receive(self) -> bytes | End:
        """The next message, or the end, which stays readable."""
        while not self._arrived:
            self._readable.clear()
            await self._readable.wait()
        item = self._arrived[0]
        if isinstance(item, bytes):
            self._arrived.popleft()
            self._used_bytes -= len(item) + _MESSAGE_OVERHEAD_BYTES
            self._writable.set()
        return item

    def cut_source(self, last: Item) -> None:
        """The writing process is dead: lose what is in flight, tell the far side `last`."""
        self._in_flight.clear()
        if not self._is_dead:
            self._is_dead = True
            self._end(last)

    def cut_target(self) -> None:
        """The reading process is dead: nothing arrives any more, writers do not wait."""
        self._in_flight.clear()
        self._is_dead = self._is_ended = True
        self._writable.set()

    def break_now(self, last: Item) -> None:
        """The connection timed out: its reader learns it without the link."""
        self.cut_target()
        self._arrive(last)

    def _end(self, item: Item) -> None:
        self._is_ended = True
        self._writable.set()
        self._depart(item)

    def _depart(self, item: Item) -> None:
        due_ns = _loop_ns() + self._mesh.delay_ns(*self._link)
        self._last_due_ns = max(self._last_due_ns, due_ns)
        self._in_flight.append((self._last_due_ns, item))
        self.deliver_due()

    def _on_timer(self) -> None:
        self._timer = None
        self.deliver_due()

    def deliver_due(self) -> None:
        """Let arrive what is due, unless a partition holds it; come again for the next."""
        if self._timer is not None or self.is_blocked:
            return
        while self._in_flight and self._in_flight[0][0] <= _loop_ns():
            self._arrive(self._in_flight.popleft()[1])
        if self._in_flight:
            when_s = self._in_flight[0][0] / NS_PER_S
            self._timer = asyncio.get_running_loop().call_at(when_s, self._on_timer)

    def _arrive(self, item: Item) -> None:
        if isinstance(item, Signal):
            item.act()
        else:
            self._arrived.append(item)
            self._readable.set()


def unavailable(address: str, why: str) -> RpcError:
    return RpcError(Code.UNAVAILABLE, f"{address}: {why}")


def _loop_ns() -> int:
    return round(asyncio.get_running_loop().time() * NS_PER_S)
