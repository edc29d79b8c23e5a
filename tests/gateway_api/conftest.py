"""The API around an echoing gateway: through ASGI, and on a real port."""

import hashlib
import itertools
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2
import openai
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_gateway.api import ApiOptions, ApiTools, build_app
from banyan_gateway.auth import KeyRing, Tenant
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.http_server import HttpServer
from banyan_gateway.model_formats import NO_FORMATS, ModelFormats
from banyan_gateway.reply import ReplyOptions
from banyan_gateway.served_models import ServedModels
from banyan_runtime.clock import SystemClock
from banyan_runtime.offload import InlineOffload, Offload
from banyan_text.card import echo_card
from banyan_text.tokenizer import ByteTokenizer

KEYS = {"key-a": Tenant("a", "tenant/a"), "key-b": Tenant("b", "group/shared")}
CONTEXT_TOKENS = 131_072
TRIALS = GrammarTrials(ByteTokenizer(), echo_card(16, "fast").end_token_ids)
"""One process for all tests; it ends with this one."""


class Driving:
    """The echo gateway has nothing to start or stop."""

    async def start(self) -> None:
        return

    async def stop(self, grace_s: float) -> None:
        return


@dataclass
class Served:
    gateway: EchoGateway
    url: str
    client: openai.AsyncOpenAI
    server: HttpServer


def key_ring() -> KeyRing:
    return KeyRing({hashlib.sha256(k.encode()).hexdigest().encode(): t for k, t in KEYS.items()})


def app_of(
    gateway: EchoGateway,
    keys: KeyRing,
    formats: ModelFormats = NO_FORMATS,
    grammar_offload: Offload | None = None,
    offload: Offload | None = None,
    tokenizer: ByteTokenizer | None = None,
) -> FastAPI:
    counter = itertools.count(1)
    tools = ApiTools(
        clock=SystemClock(),
        offload=offload or InlineOffload(),
        grammar_offload=grammar_offload or InlineOffload(),
        trials=TRIALS,
        draw=lambda: next(counter),
        logger=logging.getLogger("test gateway"),
        registry=CollectorRegistry(),
    )
    options = ApiOptions(
        version="1.2.3",
        reply=ReplyOptions(0.05, 0.5),
        body_bytes_max=200_000,
        all_bodies_bytes_max=500_000,
        body_timeout_s=3.0,
    )
    card = echo_card(16, "fast")
    models = ServedModels(card, started_unix_s=1_700_000_000)
    reader = tokenizer or ByteTokenizer()
    return build_app(gateway, reader, card, models, keys, tools, options, formats)


@pytest.fixture
def gateway() -> EchoGateway:
    return EchoGateway(ByteTokenizer(), num_cached_tokens=2)


@pytest.fixture
async def http(gateway: EchoGateway) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app_of(gateway, KeyRing()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def keyed(gateway: EchoGateway) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app_of(gateway, key_ring()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def served(gateway: EchoGateway) -> AsyncIterator[Served]:
    server = HttpServer(app_of(gateway, KeyRing()), "127.0.0.1:0", Driving())
    await server.start()
    url = f"http://{server.address}"
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield Served(gateway, url, client, server)
    await server.stop(1.0)
