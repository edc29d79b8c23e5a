"""The OpenAPI page tells the truth: its limits are those that are enforced, its shapes real."""

import json
from typing import Any

import httpx2
import msgspec
import pytest
from tests.gateway_api.conftest import CONTEXT_TOKENS, app_of
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_gateway import answer_shapes
from banyan_gateway.auth import KeyRing
from banyan_gateway.openapi import OPERATIONS
from banyan_text.tokenizer import ByteTokenizer

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hé"}], "max_tokens": 4}
PLAIN = {"model": "echo", "prompt": "hé", "max_tokens": 4}


async def page_of(http: httpx2.AsyncClient) -> dict[str, Any]:
    page: dict[str, Any] = (await http.get("/openapi.json")).json()
    return page


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    inner: dict[str, Any] = schema.get("anyOf", [schema])[0]
    return inner


async def test_every_route_is_described_and_every_reference_leads_somewhere(
    http: httpx2.AsyncClient,
) -> None:
    app = app_of(EchoGateway(ByteTokenizer()), KeyRing())
    served = {
        (method, route.path.replace(":path", ""))  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods  # type: ignore[attr-defined]
    }
    bodiless = {("HEAD", path) for method, path in served if method == "GET"}
    assert bodiless < served
    page = await page_of(http)
    described = {
        (method.upper(), path) for path, methods in page["paths"].items() for method in methods
    }
    assert described == served - bodiless == {(each.method, each.path) for each in OPERATIONS}
    text = json.dumps(page)
    for name in page["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text
    assert text.count("$ref") == sum(
        text.count(f'"#/components/schemas/{name}"') for name in page["components"]["schemas"]
    )


async def test_key_is_asked_for_where_it_is_needed(
    http: httpx2.AsyncClient, keyed: httpx2.AsyncClient
) -> None:
    assert (await keyed.get("/openapi.json")).status_code == 401
    page = (await keyed.get("/openapi.json", headers={"authorization": "Bearer key-a"})).json()
    assert page["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in page["paths"].items():
        for operation in methods.values():
            is_open = path in ("/health", "/ready")
            assert ("security" in operation) != is_open
            assert ("401" in operation["responses"]) != is_open
    assert "securitySchemes" not in (await page_of(http))["components"]


@pytest.mark.parametrize(
    ("path", "good", "body"),
    [("/v1/chat/completions", CHAT, "ChatBody"), ("/v1/completions", PLAIN, "CompletionBody")],
)
async def test_numbers_outside_the_limits_are_refused_and_the_limits_are_not(
    http: httpx2.AsyncClient, path: str, good: dict[str, Any], body: str
) -> None:
    properties = (await page_of(http))["components"]["schemas"][body]["properties"]
    num_limits = 0
    for name, schema in properties.items():
        limits = without_null(schema)
        for limit, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
            if limit not in limits:
                continue
            num_limits += 1
            if name == "max_completion_tokens":
                good = good | {"max_tokens": None}
            refused = await http.post(path, json=good | {name: limits[limit] + step})
            assert refused.status_code == 400, name
            assert refused.json()["error"]["param"] == name
            if step and not name.startswith(("max_", "min_tokens", "top_logprobs")):
                taken = await http.post(path, json=good | {name: limits[limit]})
                assert taken.status_code == 200, (name, limit, taken.text)
    assert num_limits >= 20


async def test_the_models_bounds_are_in_the_page(http: httpx2.AsyncClient) -> None:
    schemas = (await page_of(http))["components"]["schemas"]
    chat = schemas["ChatBody"]["properties"]
    assert chat["model"] == {"enum": ["echo"]}
    assert without_null(chat["max_tokens"])["maximum"] == CONTEXT_TOKENS - 1
    assert without_null(chat["stop_token_ids"])["items"]["maximum"] == 260
    assert schemas["DetokenizeBody"]["properties"]["tokens"]["items"]["maximum"] == 260
    prompt = json.dumps(schemas["CompletionBody"]["properties"]["prompt"])
    assert prompt.count('"maximum": 260') == 3


async def test_what_has_no_effect_yet_is_described_as_it_is_answered(
    http: httpx2.AsyncClient,
) -> None:
    properties = (await page_of(http))["components"]["schemas"]["ChatBody"]["properties"]
    for name, value in (("echo", False), ("functions", [])):
        assert properties[name] == {"enum": [None, value]}
        response = await http.post("/v1/chat/completions", json=CHAT | {name: value})
        assert response.status_code == 200
    assert properties["web_search_options"] == {"type": "null"}
    for name, wrong in (("web_search_options", {}), ("echo", 0)):
        response = await http.post("/v1/chat/completions", json=CHAT | {name: wrong})
        assert response.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("usage", [False, True])
async def test_answers_have_the_described_shape(
    http: httpx2.AsyncClient, logprobs: bool, usage: bool
) -> None:
    kinds = {
        "/v1/chat/completions": (
            CHAT | ({"logprobs": True, "top_logprobs": 2} if logprobs else {}),
            answer_shapes.ChatAnswer,
            answer_shapes.ChatChunk,
        ),
        "/v1/completions": (
            PLAIN | ({"logprobs": 2} if logprobs else {}),
            answer_shapes.CompletionAnswer,
            answer_shapes.CompletionChunk,
        ),
    }
    for path, (body, whole, chunk) in kinds.items():
        response = await http.post(path, json=body)
        msgspec.json.decode(response.content, type=whole)
        stream = {"stream": True} | ({"stream_options": {"include_usage": True}} if usage else {})
        response = await http.post(path, json=body | stream)
        *frames, done = response.text.removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        for frame in frames:
            msgspec.json.decode(frame.removeprefix("data: "), type=chunk)


async def test_other_answers_have_the_described_shape(http: httpx2.AsyncClient) -> None:
    shapes: dict[str, tuple[dict[str, Any] | None, Any]] = {
        "/v1/models": (None, answer_shapes.Models),
        "/v1/models/echo": (None, answer_shapes.Model),
        "/ready": (None, answer_shapes.Readiness),
        "/version": (None, answer_shapes.Version),
        "/tokenize": ({"prompt": "é", "return_token_strs": True}, answer_shapes.Tokens),
        "/detokenize": ({"tokens": [97]}, answer_shapes.Text),
        "/v1/nothing": (None, answer_shapes.Error),
    }
    for path, (body, shape) in shapes.items():
        response = await (http.get(path) if body is None else http.post(path, json=body))
        msgspec.json.decode(response.content, type=shape)
