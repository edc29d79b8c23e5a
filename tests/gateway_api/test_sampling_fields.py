"""Sampling fields beyond OpenAI's: how they reach the engine."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest
from tests.gateway_api.conftest import app_of
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_core.types import SamplingParams
from banyan_gateway import answer_shapes
from banyan_gateway.auth import KeyRing
from banyan_gateway.model_formats import ModelFormats
from banyan_text.generation_defaults import GenerationDefaults

PLAIN = {"model": "echo", "prompt": "hi", "max_tokens": 2, "seed": 1}
CHAT = {
    "model": "echo",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 2,
    "seed": 1,
}


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({}, "typical_p", 1.0),
        ({"typical_p": 0.4}, "typical_p", 0.4),
        ({"bad_words": []}, "bad_words", ()),
        ({"bad_words": ["no", " no"]}, "bad_words", (tuple(b"no"), tuple(b" no"))),
        ({"allowed_token_ids": [9, 5, 9]}, "allowed_token_ids", (5, 9)),
    ],
)
async def test_fields_reach_the_engine(
    http: httpx2.AsyncClient, gateway: EchoGateway, change: dict[str, Any], name: str, value: object
) -> None:
    for path, body in (("/v1/completions", PLAIN), ("/v1/chat/completions", CHAT)):
        response = await http.post(path, json=body | change)
        assert response.status_code == 200, response.text
        sampling = gateway.requests[-1].sampling
        assert getattr(sampling, name) == value
    untouched = SamplingParams(max_tokens=2, seed=1)
    if not change:
        assert gateway.requests[0].sampling == untouched


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.5, "top_k": -1}])
async def test_what_is_left_open_is_as_the_models_authors_recommend(
    gateway: EchoGateway, asked: dict[str, Any]
) -> None:
    defaults = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20)
    app = app_of(gateway, KeyRing(), ModelFormats(defaults=defaults))
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
        assert (await http.post("/v1/completions", json=PLAIN | asked)).status_code == 200
    sampling = gateway.requests[-1].sampling
    assert sampling.temperature == asked.get("temperature", 0.6)
    assert sampling.top_k == (0 if asked else 20)
    assert (sampling.top_p, sampling.repetition_penalty) == (0.95, 1.0)


async def test_special_tokens_are_shown_to_who_asks(
    http: httpx2.AsyncClient, gateway: EchoGateway
) -> None:
    body = CHAT | {"max_tokens": 9}
    for skip, text in ((True, "hi\n"), (None, "hi\n"), (False, "<|user|>hi\n<|assistant|>")):
        response = await http.post(
            "/v1/chat/completions", json=body | {"skip_special_tokens": skip}
        )
        said = response.json()["choices"][0]["message"]["content"]
        assert said.startswith(text)
        assert bool(gateway.requests[-1].shown) == (skip is False)


async def test_prompt_logprobs_have_vllms_shape(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", json=PLAIN | {"prompt_logprobs": 1})
    answer = msgspec.json.decode(response.content, type=answer_shapes.CompletionAnswer)
    entry = {
        str(ord("i")): answer_shapes.PromptLogprob(logprob=-2.0, rank=None, decoded_token="i"),
        "5": answer_shapes.PromptLogprob(logprob=-0.1, rank=1, decoded_token="\x05"),
    }
    assert answer.choices[0].prompt_logprobs == [None, entry]
    response = await http.post("/v1/chat/completions", json=CHAT | {"prompt_logprobs": 0, "n": 2})
    chat = msgspec.json.decode(response.content, type=answer_shapes.ChatAnswer)
    assert isinstance(chat.prompt_logprobs, list)
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens


async def test_a_penalty_that_would_leave_no_number_is_refused(http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/completions", json=PLAIN | {"repetition_penalty": 5e-324})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "repetition_penalty"
