"""The loop of services, where it is not uvloop's: gRPC's wake-ups do not pile up."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import grpc

from banyan_runtime.service_loop import ServiceLoop, Ts

NUM_CALLS = 200
NUM_ROUNDS = 8


class Loop(ServiceLoop):
    """Remembers the pair of sockets by which gRPC wakes it."""

    pair: socket.socket

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        super().add_reader(fd, callback, *args)
        self.pair = fd

    def num_wakeups(self) -> int:
        try:
            return len(self.pair.recv(65536, socket.MSG_PEEK))
        except BlockingIOError:
            return 0


async def _echo(request: bytes, _: object) -> bytes:
    return request


def _take_long(until: asyncio.Future[Any]) -> None:
    """In each turn, as long as others might."""
    time.sleep(0.0005)
    if not until.done():
        asyncio.get_running_loop().call_soon(_take_long, until)


async def _left_over() -> list[int]:
    """Wake-ups that wait after each round of calls, whose turns were all long ones."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", {"e": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t/e")
        for _ in range(NUM_ROUNDS):
            calls = asyncio.gather(*(echo(b"x") for _ in range(NUM_CALLS)))
            loop.call_soon(_take_long, calls)
            await calls
            found.append(loop.num_wakeups())
    await server.stop(None)
    return found


def test_wakeups_of_grpc_do_not_pile_up() -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(_left_over())
    assert max(found) < 90, found  # with uvloop's own they grow with each round


def test_other_readers_are_called_as_ever() -> None:
    async def read() -> tuple[bytes, tuple[Any, ...]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            called = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(ours, lambda *given: called.set_result(given), 1)
            theirs.send(b"three")
            given = await called
            asyncio.get_running_loop().remove_reader(ours)
            return ours.recv(16), given

    with asyncio.Runner(loop_factory=ServiceLoop) as runner:
        assert runner.run(read()) == (b"three", (1,))
