"""Bad fields of a body: each is named, whatever JSON it holds."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway_api.bodies import CHAT, PLAIN, error_of
from tests.gateway_api.conftest import app_of, key_ring
from tests.gateway_api.echo_gateway import EchoGateway, Script

from banyan_gateway.ports import RequestFailed
from banyan_text.tokenizer import ByteTokenizer

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
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("plain", {"max_tokens": 0, "echo": False}, "max_tokens"),
    ("plain", {"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
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
    ("chat", {"echo": True}, "echo"),
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
        ({"modalities": ["audio"]}, 'expected to be absent or ["text"]: it is not supported yet'),
        ({"web_search_options": {}}, "expected to be absent: it is not supported yet"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name: expected a string that matches ^[A-Za-z0-9_-]{1,64}$",
        ),
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
