"""Work that ends with its client's connection."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from banyan_gateway.connection import while_connected

TIMEOUT_S = 30.0


class Client:
    """Goes away when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Work:
    """Ends when it may; says how it ended, after a while."""

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.end = ""

    async def run(self) -> None:
        self.begun.set()
        try:
            await self.may_end.wait()
            self.end = "done"
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.end = "cancelled"
            raise


async def test_work_of_a_client_that_leaves_is_cancelled_and_its_task_goes_on() -> None:
    client, work = Client(), Work()

    async def request() -> str:
        await while_connected(client.receive, work.run())
        await asyncio.sleep(0)  # a cancel that was left over would be felt here
        return work.end

    task = asyncio.create_task(request())
    async with asyncio.timeout(TIMEOUT_S):
        await work.begun.wait()
        client.gone.set()
        assert await task == "cancelled"
    assert task.cancelling() == 0


async def test_work_that_ends_as_its_client_leaves_has_ended_and_nothing_more() -> None:
    client, work = Client(), Work()

    async def request() -> str:
        await while_connected(client.receive, work.run())
        for _ in range(3):
            await asyncio.sleep(0)
        return work.end

    task = asyncio.create_task(request())
    async with asyncio.timeout(TIMEOUT_S):
        await work.begun.wait()
        await asyncio.sleep(0)
        # In one turn the work may end, and then the client leaves: in the next the work does end,
        # and only then it is said that the client has left.
        asyncio.get_running_loop().call_soon(work.may_end.set)
        client.gone.set()
        assert await task == "done"


async def test_who_cancels_the_request_itself_cancels_the_work_and_is_not_kept_from_it() -> None:
    client, work = Client(), Work()
    task = asyncio.create_task(while_connected(client.receive, work.run()))
    async with asyncio.timeout(TIMEOUT_S):
        await work.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert work.end == "cancelled"


async def test_a_failure_of_the_work_comes_out() -> None:
    async def fail() -> None:
        raise ValueError("so it is")

    with pytest.raises(ValueError, match="so it is"):
        await while_connected(Client().receive, fail())
