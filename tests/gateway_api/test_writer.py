"""One response's writer: bounded waits, signs of life, and chunks whose text alone is encoded."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message

from banyan_gateway.openai_format import TextChunks
from banyan_gateway.writer import SlowClient, Writer
from banyan_runtime.virtual_loop import run_virtual

SIGN = b": here\n\n"


class Client:
    """Takes what is sent, unless told to stop; notes when each message had arrived."""

    def __init__(self) -> None:
        self.got: list[tuple[float, bytes | int]] = []
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        now = asyncio.get_running_loop().time()
        what = message["status"] if message["type"] == "http.response.start" else message["body"]
        self.got.append((now, what))

    def writer(self) -> Writer:
        return Writer(self.send, self.send, timeout_s=5.0)


def test_silence_is_broken_again_and_again_and_the_status_goes_first() -> None:
    async def main() -> None:
        client = Client()
        writer = client.writer()
        began = asyncio.get_running_loop().time()
        async with writer.kept_alive(2.0, [], SIGN):
            await asyncio.sleep(5.0)
            await writer.write(b"text")
            await asyncio.sleep(1.5)
        await writer.end(b"end")
        got = [(round(at - began, 2), what) for at, what in client.got]
        assert got == [(2.0, 200), (2.0, SIGN), (4.0, SIGN), (5.0, b"text"), (6.5, b"end")]

    run_virtual(main)


def test_a_client_that_does_not_read_is_given_up_after_the_time_for_one_write() -> None:
    async def main() -> None:
        client = Client()
        writer = client.writer()
        with pytest.raises(SlowClient):
            async with writer.in_time():
                for _ in range(10):  # many writes in time are no slow write
                    await asyncio.sleep(1.0)
                    await writer.write(b"text")
                client.reads.clear()
                stuck = asyncio.get_running_loop().time()
                await writer.write(b"unread")
        assert asyncio.get_running_loop().time() - stuck == pytest.approx(5.0, abs=0.1)

    run_virtual(main)


def test_a_sign_that_is_stuck_keeps_its_place() -> None:
    async def main() -> None:
        client = Client()
        writer = client.writer()
        async with writer.in_time(), writer.kept_alive(1.0, [], SIGN):
            await writer.start(200, [])
            client.reads.clear()
            await asyncio.sleep(2.5)
            writing = asyncio.create_task(writer.write(b"text"))
            await asyncio.sleep(0.1)
            client.reads.set()
            await writing
        assert [what for _, what in client.got] == [200, SIGN, b"text"]

    run_virtual(main)


def test_another_timeout_is_not_taken_for_a_slow_client() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with Client().writer().in_time():
                raise TimeoutError

    run_virtual(main)


@pytest.mark.parametrize("text", ["x", 'a "b"\n\\', "é😀\u2028", TextChunks.TEXT])
def test_a_chunk_of_text_alone_is_the_whole_object(text: str) -> None:
    choice = {"index": 3, "text": TextChunks.TEXT, "finish_reason": None}
    chunks = TextChunks(b'{"id":"a","choices":', choice, b"}")
    assert json.loads(chunks.of(text)) == {"id": "a", "choices": [{**choice, "text": text}]}
