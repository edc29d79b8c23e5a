"""Refusals and failures: always OpenAI's shape, never a 500 for a client's mistake."""

from typing import Any

import httpx2
import pytest
from tests.gateway_api.bodies import CHAT, PLAIN, error_of
from tests.gateway_api.conftest import CONTEXT_TOKENS
from tests.gateway_api.echo_gateway import EchoGateway, Script

from banyan_gateway.errors import MESSAGE_CHARS_MAX
from banyan_gateway.ports import RequestFailed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": NaN}',
        b'{"model": "echo", "temperature": 1e999}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"model": "echo", "metadata": ' + b'{"a":' * 30_000,
        b"[]",
        b"null",
        b'"text"',
        b"\xef\xbb\xbf{}",
        b'{"model": 1' + b"0" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"]
)
async def test_bad_json(http: httpx2.AsyncClient, path: str, data: bytes) -> None:
    response = await http.post(path, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert len(error_of(response)["message"]) < 300


@pytest.mark.parametrize("size", [CONTEXT_TOKENS, CONTEXT_TOKENS - 1, 199_000])
async def test_context_exceeded(http: httpx2.AsyncClient, size: int) -> None:
    response = await http.post("/v1/completions", json=PLAIN | {"prompt": "x" * size})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("num_tokens", "param"),
    [(CONTEXT_TOKENS - 1, "messages"), (CONTEXT_TOKENS + 1, None), (10**30, None)],
)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_more_tokens_than_any_prompt_leaves_are_named(
    http: httpx2.AsyncClient, name: str, num_tokens: int, param: str | None
) -> None:
    body = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    response = await http.post("/v1/chat/completions", json=body | {name: num_tokens})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param or name)


async def test_context_is_used_to_its_end(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    prompt = {"prompt": "x" * (CONTEXT_TOKENS - 2)}
    assert (await http.post("/v1/completions", json=PLAIN | prompt)).status_code == 200
    gateway.script = Script(num_tokens=1, failure=RequestFailed("enough", "seen enough"))
    await http.post("/v1/chat/completions", json=CHAT | {"max_tokens": None})
    request = gateway.requests[-1]
    assert request.sampling.max_tokens == CONTEXT_TOKENS - len(request.prompt_token_ids)


async def test_body_too_large(http: httpx2.AsyncClient) -> None:
    async def unannounced() -> Any:
        for _ in range(30):
            yield b" " * 10_000

    big = b" " * 200_001
    json_type = {"content-type": "application/json"}
    for content in (big, unannounced()):
        response = await http.post("/v1/completions", content=content, headers=json_type)
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"


@pytest.mark.parametrize("headers", [{"content-type": "text/plain"}, {"content-encoding": "gzip"}])
async def test_wrong_kind_of_body(http: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    kinds = {"content-type": "application/json"} | headers
    response = await http.post("/v1/completions", content=b"{}", headers=kinds)
    assert response.status_code == 415
    assert error_of(response)["param"] == next(iter(headers))


async def test_unknown_routes_and_methods(http: httpx2.AsyncClient) -> None:
    response = await http.get("/v1/nothing")
    assert response.status_code == 404
    assert "/v1/nothing" in error_of(response)["message"]
    response = await http.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    error_of(response)
    response = await http.post("/v1/completions", json=PLAIN | {"model": "other"})
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    response = await http.post("/v1/completions", json=PLAIN | {"model": "other" * 10_000})
    assert len(error_of(response)["message"]) == MESSAGE_CHARS_MAX
    error_of(await http.get("/v1/requests/none"))


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_token(
    http: httpx2.AsyncClient, gateway: EchoGateway, status: int, stream: bool
) -> None:
    failure = RequestFailed("no_capacity", "no worker has room", 0.2, status)
    gateway.script = Script(num_tokens=0, failure=failure)
    response = await http.post("/v1/completions", json=PLAIN | {"stream": stream})
    assert response.status_code == status
    assert response.headers["retry-after"] == "1"
    error = error_of(response)
    assert (error["code"], error["message"]) == ("no_capacity", "no worker has room")


async def test_failure_in_mid_answer_of_a_whole_one(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    gateway.script = Script(num_tokens=1, failure=RequestFailed("worker_lost", "gone", None, 503))
    response = await http.post("/v1/completions", json=PLAIN)
    assert response.status_code == 503
    assert error_of(response)["code"] == "worker_lost"


@pytest.mark.parametrize("priority", [None, 1])
@pytest.mark.parametrize("padding", [0, 10_000])
async def test_full_queue_sheds_by_class_before_the_body_is_checked(
    http: httpx2.AsyncClient, gateway: EchoGateway, priority: int | None, padding: int
) -> None:
    gateway.shed_above = -1
    body = PLAIN | {"priority": priority, "unknown": "x" * padding}
    response = await http.post("/v1/completions", json=body)
    assert (response.status_code, response.headers["retry-after"]) == (429, "4")
    assert error_of(response)["code"] == "queue_full"
    better = await http.post("/v1/completions", json=PLAIN | {"priority": -1})
    assert better.status_code == 200
    assert (len(gateway.requests), gateway.num_shed) == (1, 1)


@pytest.mark.parametrize("body", [b"[]", b'{"priority": "high"}', b"{", b"[" * 9999])
async def test_what_has_no_class_is_told_what_is_wrong_with_it_even_when_the_queue_is_full(
    http: httpx2.AsyncClient, gateway: EchoGateway, body: bytes
) -> None:
    gateway.shed_above = -(2**31)
    response = await http.post("/v1/completions", content=body)
    assert response.status_code == 400
    error_of(response)


async def test_timeout_of_a_request(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    response = await http.post(
        "/v1/completions", json=PLAIN, headers={"x-request-timeout-ms": "2500"}
    )
    assert response.status_code == 200
    assert gateway.requests[0].deadline_ns == 2_500_000_000
    await http.post("/v1/completions", json=PLAIN)
    assert gateway.requests[1].deadline_ns is None


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1s", "86400001", "9" * 5000, "\u0661"])
async def test_bad_timeout_is_named(
    http: httpx2.AsyncClient, gateway: EchoGateway, value: str
) -> None:
    headers = {b"x-request-timeout-ms": value.encode()}
    response = await http.post("/v1/completions", json=PLAIN, headers=headers)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "x-request-timeout-ms"
    assert "from 1 to 86400000" in error["message"]
    assert not gateway.requests


async def test_mistake_of_ours_is_told_without_details(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    gateway.script = Script(num_tokens=0, failure=RuntimeError("secret detail"))
    response = await http.post("/v1/completions", json=PLAIN)
    assert response.status_code == 500
    assert "secret" not in response.text
    error_of(response)


async def test_mistake_in_a_route_is_told_without_details(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    gateway.is_ready = None  # type: ignore[assignment]  # makes the route fail
    response = await http.get("/ready")
    assert response.status_code == 500
    error_of(response)


async def test_keys(keyed: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    good = {"authorization": "Bearer key-b"}
    assert (await keyed.post("/v1/completions", json=PLAIN, headers=good)).status_code == 200
    request = gateway.requests[0]
    assert (request.tenant, request.share_group) == ("b", "group/shared")
    assert (await keyed.get("/health")).status_code == 200
    for header in ("", "key-b", "Basic key-b", "Bearer", "Bearer key-c", "Bearer ké"):
        headers = [(b"authorization", header.encode("latin-1"))] if header else []
        for path in ("/v1/models", "/metrics", "/version", "/nothing"):
            response = await keyed.get(path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert error_of(response)["type"] == "authentication_error"
    assert len(gateway.requests) == 1


async def test_request_ids(http: httpx2.AsyncClient) -> None:
    made = (await http.get("/health")).headers["x-request-id"]
    assert made.startswith("req-")
    response = await http.get("/health", headers={"x-request-id": "mine-1.2:3_4"})
    assert response.headers["x-request-id"] == "mine-1.2:3_4"
    for wrong in ("", "a b", "x" * 129, "a/b"):
        response = await http.get("/health", headers={"x-request-id": wrong})
        assert response.status_code == 400
        assert error_of(response)["param"] == "x-request-id"
