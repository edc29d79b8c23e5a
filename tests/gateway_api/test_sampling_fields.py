"""Sampling fields beyond OpenAI's: how they reach the engine."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_core.types import SamplingParams
from banyan_gateway import answer_shapes

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
