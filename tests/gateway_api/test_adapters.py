"""Adapters as models: listed, named by requests, coming and going with their folders."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from tests.gateway_api.conftest import TRIALS
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_gateway.api import ApiOptions, ApiTools, build_app
from banyan_gateway.auth import KeyRing
from banyan_gateway.served_models import RESCAN_S, ServedModels
from banyan_runtime.clock import SystemClock
from banyan_runtime.offload import InlineOffload
from banyan_text.adapter_folder import AdapterFolder
from banyan_text.card import echo_card
from banyan_text.tokenizer import ByteTokenizer

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@dataclass
class Api:
    http: httpx2.AsyncClient
    gateway: EchoGateway
    folder: Path

    def put(self, name: str, config: str = "{}") -> None:
        """An adapter as the gateway sees it: it reads no weights."""
        path = self.folder / f".{name}"
        path.mkdir()
        (path / "adapter_config.json").write_text(config)
        (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        path.rename(self.folder / name)

    async def ids(self) -> list[str]:
        listed = (await self.http.get("/v1/models")).json()
        return [model["id"] for model in listed["data"]]

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        for _ in range(100):
            if await holds():
                return
            await asyncio.sleep(RESCAN_S / 20)
        raise AssertionError("not within five scans")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    gateway = EchoGateway(ByteTokenizer())
    tools = ApiTools(
        SystemClock(),
        InlineOffload(),
        InlineOffload(),
        TRIALS,
        lambda: 7,
        logging.getLogger("test"),
        CollectorRegistry(),
    )
    card = echo_card(16, "fast")
    models = ServedModels(card, started_unix_s=1_700_000_000)
    transport_of = build_app(
        gateway, ByteTokenizer(), card, models, KeyRing(), tools, ApiOptions("1.2.3")
    )
    transport = httpx2.ASGITransport(app=transport_of)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        served = Api(http, gateway, tmp_path)
        served.put("poet")
        await models.watch(tmp_path, InlineOffload(), tools.logger)
        yield served
    await models.close()


async def test_the_model_and_its_adapters_are_listed(api: Api) -> None:
    listed = (await api.http.get("/v1/models")).json()
    base, adapter = listed["data"]
    assert (base["id"], base["root"], base["parent"]) == ("echo", "echo", None)
    assert (adapter["id"], adapter["root"], adapter["parent"]) == ("poet", "echo", "echo")
    assert adapter["max_model_len"] == base["max_model_len"]
    assert (await api.http.get("/v1/models/poet")).json() == adapter
    assert (await api.http.get("/v1/models/nobody")).status_code == 404
    page = (await api.http.get("/openapi.json")).json()
    model = page["components"]["schemas"]["ChatBody"]["properties"]["model"]
    assert model == {"enum": ["echo", "poet"]}


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"n": 2, "seed": 3}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
    ],
)
async def test_a_request_for_an_adapter_carries_it(
    path: str, body: dict[str, Any], api: Api
) -> None:
    answer = (await api.http.post(path, json=body | {"model": "poet"})).json()
    assert answer["model"] == "poet"
    wanted = AdapterFolder(api.folder).find("poet")
    assert wanted is not None
    for request in api.gateway.requests:
        assert (request.model, request.adapter) == ("poet", wanted)
    api.gateway.requests.clear()
    answer = (await api.http.post(path, json=body | {"model": "echo"})).json()
    assert answer["model"] == "echo"
    assert {request.adapter for request in api.gateway.requests} == {None}


async def test_a_streamed_answer_names_the_adapter(api: Api) -> None:
    body = CHAT | {"model": "poet", "stream": True}
    lines = (await api.http.post("/v1/chat/completions", json=body)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"poet"}


async def test_an_unknown_name_is_404_everywhere(api: Api) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [97]}),
    ):
        refused = await api.http.post(path, json=body | {"model": "prose"})
        assert refused.status_code == 404, path
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'prose'" in error["message"]
    assert not api.gateway.requests
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        assert (await api.http.post(path, json=body | {"model": "poet"})).status_code == 200


async def test_adapters_come_change_and_go_while_it_serves(api: Api) -> None:
    async def has_both() -> bool:
        return await api.ids() == ["echo", "coder", "poet"]

    async def has_coder_only() -> bool:
        return await api.ids() == ["echo", "coder"]

    api.put("coder")
    await api.until(has_both)
    body = CHAT | {"model": "coder"}
    assert (await api.http.post("/v1/chat/completions", json=body)).status_code == 200
    (api.folder / "poet").rename(api.folder / ".gone")
    await api.until(has_coder_only)
    body = CHAT | {"model": "poet"}
    assert (await api.http.post("/v1/chat/completions", json=body)).status_code == 404
    first = api.gateway.requests[-1].adapter

    async def has_changed() -> bool:
        await api.http.post("/v1/chat/completions", json=CHAT | {"model": "coder"})
        return api.gateway.requests[-1].adapter != first

    (api.folder / "coder" / "adapter_config.json").write_text('{"r": 4}')
    await api.until(has_changed)


async def test_an_adapter_cannot_take_the_models_own_name(api: Api) -> None:
    async def has_coder() -> bool:
        return "coder" in await api.ids()

    api.put("echo")
    api.put("coder")
    await api.until(has_coder)
    assert await api.ids() == ["echo", "coder", "poet"]
    await api.http.post("/v1/chat/completions", json=CHAT | {"model": "echo"})
    assert api.gateway.requests[-1].adapter is None
