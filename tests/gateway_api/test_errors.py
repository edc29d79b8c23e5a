"""Bad requests: always OpenAI's shape, always the field's name, never a 500."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_api.conftest import CONTEXT_TOKENS, app_of, key_ring
from tests.gateway_api.echo_gateway import EchoGateway, Script

from banyan_gateway.ports import RequestFailed
from banyan_text.tokenizer import ByteTokenizer

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PLAIN = {"model": "echo", "prompt": "hi", "max_tokens": 2}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"temperature": 2.1}, "temperature"),
    ("chat", {"temperature": "hot"}, "temperature"),
    ("chat", {"temperature": -0.1}, "temperature"),
    ("chat", {"top_p": 0}, "top_p"),
    ("chat", {"top_p": 1.1}, "top_p"),
    ("chat", {"top_k": -2}, "top_k"),
    ("chat", {"min_p": 2}, "min_p"),
    ("chat", {"presence_penalty": -2.5}, "presence_penalty"),
    ("chat", {"frequency_penalty": 3}, "frequency_penalty"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
    ("chat", {"n": 0}, "n"),
    ("chat", {"n": 17}, "n"),
    ("chat", {"n": 1.5}, "n"),
    ("chat", {"n": True}, "n"),
    ("chat", {"n": 10**40}, "n"),
    ("chat", {"seed": 2**63}, "seed"),
    ("chat", {"seed": 10**4000}, "seed"),
    ("chat", {"stop": ["a"] * 5}, "stop"),
    ("chat", {"stop": ["a", ""]}, "stop[1]"),
    ("chat", {"stop": "x" * 257}, "stop"),
    ("chat", {"stop": ["a", 1]}, "stop[1]"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
    ("chat", {"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
    ("chat", {"min_tokens": 3}, "min_tokens"),
    ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias.5"),
    ("chat", {"logit_bias": {"5": "much"}}, "logit_bias.5"),
    ("chat", {"logit_bias": {"5": None}}, "logit_bias.5"),
    ("chat", {"logit_bias": {"5": True}}, "logit_bias.5"),
    ("chat", {"logit_bias": {"5": 10**40}}, "logit_bias.5"),
    ("chat", {"logit_bias": {"5": 1, "261": 1}}, "logit_bias.261"),
    ("chat", {"logit_bias": {"x": 1}}, "logit_bias.x"),
    ("chat", {"logit_bias": {"x" * 1000: 1}}, "logit_bias." + "x" * 40),
    ("chat", {"logit_bias": {"²": 1}}, "logit_bias.²"),
    ("chat", {"logit_bias": [1]}, "logit_bias"),
    ("chat", {"stop_token_ids": [261]}, "stop_token_ids[0]"),
    ("chat", {"allowed_token_ids": [261]}, "allowed_token_ids[0]"),
    ("chat", {"allowed_token_ids": []}, "allowed_token_ids"),
    (
        "chat",
        {"allowed_token_ids": [5], "response_format": {"type": "json_object"}},
        "allowed_token_ids",
    ),
    ("chat", {"bad_words": ["a", ""]}, "bad_words[1]"),
    ("chat", {"bad_words": ["a"] * 129}, "bad_words"),
    ("chat", {"typical_p": 0}, "typical_p"),
    ("chat", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ("chat", {"skip_special_tokens": "no"}, "skip_special_tokens"),
    ("chat", {"cache_salt": ""}, "cache_salt"),
    ("chat", {"cache_salt": "x" * 1025}, "cache_salt"),
    ("chat", {"priority": 2**31}, "priority"),
    ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("chat", {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    (
        "chat",
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"temprature": 1}, "temprature"),
    ("chat", {"tools": [{"type": "function"}]}, "tools[0].function"),
    ("chat", {"tools": {}}, "tools"),
    ("chat", {"modalities": ["audio"]}, "modalities"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user", "content": "x", "q": 1}]}, "messages[0].q"),
    (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
        "messages[0].audio",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    ("chat", {"prompt": "x"}, "prompt"),
    ("plain", {"messages": []}, "messages"),
    ("plain", {"prompt": ""}, "prompt"),
    ("plain", {"prompt": []}, "prompt"),
    ("plain", {"prompt": ["a", ""]}, "prompt[1]"),
    ("plain", {"prompt": [1, "a"]}, "prompt"),
    ("plain", {"prompt": ["a", [1]]}, "prompt"),
    ("plain", {"prompt": [1, 261]}, "prompt[1]"),
    ("plain", {"prompt": [-1]}, "prompt[0]"),
    ("plain", {"prompt": [10**30]}, "prompt[0]"),
    ("plain", {"prompt": [[1], [2, 999]]}, "prompt[1][1]"),
    ("plain", {"prompt": [1.5]}, "prompt[0]"),
    ("plain", {"prompt": ["a"] * 65}, "prompt"),
    ("plain", {"prompt": ["a"] * 16, "n": 16}, "n"),
    ("plain", {"prompt": {}}, "prompt"),
    ("plain", {"logprobs": 6}, "logprobs"),
    ("plain", {"logprobs": True}, "logprobs"),
    ("plain", {"echo": True}, "echo"),
    ("plain", {"suffix": "x"}, "suffix"),
    ("plain", {"best_of": 2}, "best_of"),
]
ROUTES = {"chat": ("/v1/chat/completions", CHAT), "plain": ("/v1/completions", PLAIN)}


@pytest.mark.parametrize(("kind", "change", "param"), BAD_FIELDS)
async def test_bad_field_is_named(
    http: httpx2.AsyncClient, gateway: EchoGateway, kind: str, change: dict[str, Any], param: str
) -> None:
    path, good = ROUTES[kind]
    response = await http.post(path, json=good | change)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert len(error["message"]) < 300
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 17}, "n: expected a whole number from 1 to 16"),
        ({"n": "x"}, "n: expected a whole number, got a string"),
        ({"min_p": 2}, "min_p: expected a number from 0 to 1"),
        ({"top_p": 0}, "top_p: expected a number above 0 and up to 1"),
        ({"seed": 10**30}, "seed: expected a whole number from -9223372036854775808 to"),
        ({"stop": ["x"] * 5}, "a string of 1 to 256 characters or an array of at most 4 items"),
        ({"stop": ["x" * 257]}, "stop[0]: expected a string of 1 to 256 characters"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "an object of at most 1024 entries"),
        ({"messages": [{"role": "robot", "content": ""}]}, "one of assistant, developer, system"),
        ({"max_tokens": 10**30}, "and a much larger one are asked for"),
    ],
)
async def test_a_refused_number_is_told_its_kind_and_never_repeated_at_length(
    http: httpx2.AsyncClient, change: dict[str, Any], message: str
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | change)
    assert response.status_code == 400
    error = error_of(response)
    assert message in error["message"]
    assert "0" * 30 not in error["message"]


NOTHING_SPECIAL = {
    "n": None,
    "stop": None,
    "stream_options": None,
    "tools": None,
    "metadata": None,
    "response_format": {"type": "text"},
    "tool_choice": "none",
}


async def test_null_means_absent(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | NOTHING_SPECIAL)
    assert response.status_code == 200
    assert "x-banyan-ignored-fields" not in response.headers
    assert gateway.requests[0].n == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_fields_without_effect_are_named(http: httpx2.AsyncClient, stream: bool) -> None:
    ignored = {"store": True, "metadata": {"a": "b"}, "user": "me", "functions": []}
    response = await http.post("/v1/chat/completions", json=CHAT | ignored | {"stream": stream})
    assert response.status_code == 200
    names = response.headers["x-banyan-ignored-fields"].split(", ")
    assert sorted(names) == sorted(ignored)


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = (
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "cache_salt",
    "priority",
    "metadata",
    "tools",
    "response_format",
    "top_k",
    "min_p",
    "repetition_penalty",
    "echo",
)


@pytest.mark.parametrize("kind", ["chat", "plain"])
@given(change=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
async def test_any_json_gets_an_answer_or_a_clear_refusal(
    kind: str, change: dict[str, Any]
) -> None:
    gateway = EchoGateway(ByteTokenizer())
    gateway.script = Script(num_tokens=1, failure=RequestFailed("enough", "seen enough", None, 503))
    path, good = ROUTES[kind]
    transport = httpx2.ASGITransport(app=app_of(gateway, key_ring()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.post(
            path,
            content=json.dumps(good | change).encode(),
            headers={"authorization": "Bearer key-a", "content-type": "application/json"},
        )
    assert response.status_code in (200, 400, 404, 503)
    if response.status_code in (400, 404):
        assert error_of(response)["message"]
