"""Prompts of 100,000 tokens: reading them holds nobody else up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import httpx2
import pytest
from tests.gateway_api.bodies import CHAT, PLAIN
from tests.gateway_api.conftest import app_of
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_core.hashing import block_hashes
from banyan_gateway.acceptance import Acceptance
from banyan_gateway.auth import KeyRing
from banyan_runtime.offload import InlineOffload, ThreadOffload
from banyan_text.card import echo_card
from banyan_text.tokenizer import ByteTokenizer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
NUM_TOKENS = 100_000
TEXT = "x" * NUM_TOKENS
LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": TEXT}]}),
    "plain": ("/v1/completions", PLAIN | {"prompt": TEXT}),
    "tokenize": ("/tokenize", {"prompt": TEXT}),
}


class HeldTokenizer(ByteTokenizer):
    """Stands still in a long text until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def encode(self, text: str, add_special: bool) -> list[int]:
        if len(text) >= NUM_TOKENS:
            self.reached.set()
            assert self.go_on.wait(60), "nobody else was served meanwhile"
        return super().encode(text, add_special)


@pytest.mark.parametrize("kind", LONG)
async def test_others_are_served_while_a_long_prompt_is_read(
    gateway: EchoGateway, kind: str
) -> None:
    path, body = LONG[kind]
    tokenizer, offload = HeldTokenizer(), ThreadOffload(1)
    app = app_of(gateway, KeyRing(), offload=offload, tokenizer=tokenizer)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        long = asyncio.create_task(client.post(path, json=body))
        await asyncio.to_thread(tokenizer.reached.wait, 60)
        for short in (CHAT, CHAT | {"stream": True}):
            served = await client.post("/v1/chat/completions", json=short)
            assert served.status_code == 200
        assert not long.done()
        tokenizer.go_on.set()
        assert (await long).status_code == 200
    await offload.close()


class WatchedOffload(InlineOffload):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.functions: list[object] = []

    async def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        self.functions.append(function)
        return await super().run(function, *args)


async def test_a_long_prompt_is_hashed_off_the_loop_and_a_short_one_in_place(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    for prompt in (TEXT, "hi"):
        await http.post("/v1/completions", json=PLAIN | {"prompt": prompt})
    long, short = gateway.requests
    offload, card = WatchedOffload(), echo_card(16, "fast")
    acceptance = Acceptance(b"secret", card, offload)
    accepted = await acceptance.accept(long)
    assert offload.functions == [block_hashes]
    assert len(accepted.block_hashes) == NUM_TOKENS // 16
    await acceptance.accept(short)
    assert offload.functions == [block_hashes]
