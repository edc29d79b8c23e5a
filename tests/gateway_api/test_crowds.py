"""Many at once on one port: who begins when, what the gone leave behind, who does not read."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from starlette.types import Receive, Scope, Send
from tests.gateway_api.conftest import Driving, Served
from tests.gateway_api.test_connections import REQUEST, answer_of, connected, until
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from banyan_gateway.http_protocol import BoundedProtocol
from banyan_gateway.http_server import HttpServer
from banyan_gateway.request_starts import STARTS_PER_TURN, RequestStarts

NUM_CLIENTS = 50
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(send: Send) -> None:
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
) -> AsyncIterator[tuple[str, int]]:
    server = HttpServer(app, "127.0.0.1:0", Driving())
    await server.start()
    host, _, port = server.address.rpartition(":")
    try:
        async with asyncio.timeout(20):
            yield host, int(port)
    finally:
        await server.stop(1.0)


async def test_of_a_crowd_a_few_requests_begin_in_each_turn_of_the_loop() -> None:
    turn = 0
    begun: Counter[int] = Counter()
    waited_ns: list[int] = []

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun[turn] += 1
        waited_ns.append(scope["state"].get("waited_ns", 0))
        await answer(send)

    counting = asyncio.create_task(count_turns())
    async with serving(app) as address:
        clients = [await asyncio.open_connection(*address) for _ in range(NUM_CLIENTS)]
        for _, writer in clients:
            writer.write(GET)  # all before the server has a turn
        for reader, writer in clients:
            assert (await answer_of(reader))[0] == 200
            writer.close()
    counting.cancel()
    assert begun.total() == NUM_CLIENTS
    assert max(begun.values()) == STARTS_PER_TURN
    assert waited_ns[-1] > waited_ns[0], "the last has waited, and that is known"


async def test_who_comes_alone_begins_at_once_and_others_in_order() -> None:
    starts, begun, all_begun = RequestStarts(), list[int](), asyncio.Event()
    crowd = list(range(2 * STARTS_PER_TURN))
    for number in crowd:
        starts.begin(partial(begun.append, number))
    starts.begin(all_begun.set)
    assert begun == crowd[:STARTS_PER_TURN]
    await all_begun.wait()
    assert begun == crowd
    await asyncio.sleep(0)
    starts.begin(partial(begun.append, -1))
    assert begun[-1] == -1, "nobody waits any more"


async def test_the_gateway_hears_how_long_a_request_waited_to_begin(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_ns: list[int] = []
    monkeypatch.setattr(served.gateway, "refusal", waits_ns.append)
    connections = [connected(served) for _ in range(NUM_CLIENTS)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(each) for each in connections]
        for _, writer in clients:
            writer.write(REQUEST)
        for reader, _ in clients:
            assert (await answer_of(reader))[0] == 200
    # Whoever waited saw all that came before begin, and the first nobody.
    assert waits_ns[-1] > waits_ns[0] >= 0
    assert len(waits_ns) == NUM_CLIENTS


async def test_a_request_and_its_connection_leave_nothing_to_the_garbage_collector(
    served: Served,
) -> None:
    def there() -> list[object]:
        kinds = BoundedProtocol, RequestResponseCycle
        return [each for each in gc.get_objects() if type(each) in kinds]

    def left() -> int:
        return len(there()) - len(of_others)

    gc.collect()
    gc.disable()
    of_others = there()  # of tests before this one, kept until it ends
    try:
        for _ in range(10):
            async with connected(served) as (reader, writer):
                writer.write(REQUEST)
                assert (await answer_of(reader))[0] == 200
        await until(lambda: not left())
    finally:
        gc.enable()


async def test_what_a_client_does_not_read_waits_here_and_not_in_the_system() -> None:
    num_sent = 0
    piece, num_pieces = b"x" * 16_384, 64

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(num_pieces):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            num_sent += 1
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as address:
        reader, writer = await asyncio.open_connection(*address, limit=64)
        writer.write(GET)
        await reader.read(1)
        assert num_sent < num_pieces, "the system took all of it"
        while num_sent < num_pieces:
            assert await reader.read(1 << 16)
        assert num_sent == num_pieces, "it goes on as the client reads"
        writer.close()
