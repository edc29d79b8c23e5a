"""Plain completions that repeat their prompt: `echo`, `prompt_logprobs`, and both in streams."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_gateway import answer_shapes

BODY: dict[str, Any] = {"model": "echo", "prompt": "héy", "max_tokens": 2, "seed": 1, "echo": True}
TOKENS = ["h", "bytes:\\xc3", "bytes:\\xa9", "y"]


async def whole(http: httpx2.AsyncClient, **change: Any) -> answer_shapes.CompletionAnswer:
    response = await http.post("/v1/completions", json=BODY | change)
    assert response.status_code == 200, response.text
    return msgspec.json.decode(response.content, type=answer_shapes.CompletionAnswer)


async def streamed(http: httpx2.AsyncClient, **change: Any) -> list[answer_shapes.CompletionChunk]:
    response = await http.post("/v1/completions", json=BODY | {"stream": True} | change)
    assert response.status_code == 200, response.text
    *events, done = [line[6:] for line in response.text.splitlines() if line]
    assert done == "[DONE]"
    return [msgspec.json.decode(each, type=answer_shapes.CompletionChunk) for each in events]


async def test_the_prompt_comes_first(http: httpx2.AsyncClient, gateway: EchoGateway) -> None:
    answer = await whole(http, prompt=["ab", "cd"], n=2)
    assert [each.text for each in answer.choices] == ["abab", "abab", "cdcd", "cdcd"]
    assert [each.logprobs for each in answer.choices] == [None] * 4
    assert answer.usage.completion_tokens == 8
    assert gateway.requests[0].sampling.num_prompt_logprobs is None, "nobody asked for them"


@pytest.mark.parametrize("prompt", ["héy", list("héy".encode()), [list("héy".encode())]])
async def test_its_tokens_have_logprobs_and_the_first_has_none(
    http: httpx2.AsyncClient, prompt: Any
) -> None:
    (choice,) = (await whole(http, prompt=prompt, logprobs=1)).choices
    assert choice.text == "héyh\N{REPLACEMENT CHARACTER}"
    lists = choice.logprobs
    assert lists is not None
    assert lists.tokens == [*TOKENS, *TOKENS[:2]]
    assert lists.token_logprobs == [None, -2.0, -2.0, -2.0, -0.5, -0.5]
    assert lists.top_logprobs[:2] == [None, {"\x05": -0.1}]
    assert lists.text_offset == [0, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("prompt", ["<|user|>hi", [259, 104, 105]])
async def test_special_tokens_are_echoed_as_they_were_given(
    http: httpx2.AsyncClient, prompt: Any
) -> None:
    """Spelt out where the client spelt them out; an id adds nothing to text, as everywhere."""
    (choice,) = (await whole(http, prompt=prompt, logprobs=0, max_tokens=3)).choices
    start = "<|user|>" if isinstance(prompt, str) else ""
    assert choice.text == start + "hihi"
    assert choice.logprobs is not None
    at = len(start)
    assert choice.logprobs.text_offset == [0, at, at + 1, at + 2, at + 2, at + 3]


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("usage", [False, True])
async def test_a_stream_says_the_same(
    http: httpx2.AsyncClient, logprobs: int | None, usage: bool
) -> None:
    change: dict[str, Any] = {"prompt": ["héy", "cd"], "n": 2, "logprobs": logprobs}
    expected = (await whole(http, **change)).choices
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await streamed(http, **change, **({"stream_options": options} if usage else {}))
    for choice in expected:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[0].text.startswith("cd" if choice.index > 1 else "héy"), "first of all"
        assert [part.finish_reason for part in parts][-1] == choice.finish_reason
        if choice.logprobs is not None:
            for name in choice.logprobs.__struct_fields__:
                said = [getattr(part.logprobs, name) for part in parts if part.logprobs]
                assert [each for one in said for each in one] == getattr(choice.logprobs, name)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_scored_without_output(http: httpx2.AsyncClient, stream: bool) -> None:
    """What lm-evaluation-harness asks: log likelihoods of a text, many to a body, as ids."""
    change = {"prompt": [[97, 98], [99]], "max_tokens": 0, "logprobs": 1, "temperature": 0}
    if stream:
        options = {"include_usage": True}
        chunks = await streamed(http, **change, stream_options=options)
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert [(c.text, c.finish_reason) for c in choices if c.logprobs is None] == [
            ("", "length")
        ] * 2
        found = {c.index: c.logprobs for c in choices if c.logprobs is not None}
        usage = chunks[-1].usage
        assert isinstance(usage, answer_shapes.UsageCounts)
    else:
        answer = await whole(http, **change)
        assert [(c.text, c.finish_reason) for c in answer.choices] == [
            ("ab", "length"),
            ("c", "length"),
        ]
        found = {c.index: c.logprobs for c in answer.choices if c.logprobs is not None}
        usage = answer.usage
    assert found[0] == answer_shapes.PlainLogprobs(
        tokens=["a", "b"],
        token_logprobs=[None, -2.0],
        top_logprobs=[None, {"\x05": -0.1}],
        text_offset=[0, 1],
    )
    assert found[1].token_logprobs == [None]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 0, 3)


async def test_each_list_has_its_own_number_of_alternatives(http: httpx2.AsyncClient) -> None:
    (choice,) = (await whole(http, logprobs=0, prompt_logprobs=2, prompt="hi")).choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs == [None, {}, {}, {}]
    assert isinstance(choice.prompt_logprobs, list)
    assert [set(each or {}) for each in choice.prompt_logprobs] == [set(), {"105", "5"}]
    (choice,) = (await whole(http, logprobs=2, prompt_logprobs=0, prompt="hi")).choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs[1] == {"\x05": -0.1}
    assert isinstance(choice.prompt_logprobs, list)
    assert set(choice.prompt_logprobs[1] or {}) == {"105"}


async def test_the_first_chunk_of_each_choice_has_the_prompt_logprobs(
    http: httpx2.AsyncClient,
) -> None:
    change = {"prompt": ["hi", "x"], "n": 2, "echo": False, "prompt_logprobs": 1}
    expected = (await whole(http, **change)).choices
    assert expected[2].prompt_logprobs == [None], "of one token there is nothing to say"
    chunks = await streamed(http, **change)
    for choice in expected:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert parts[0].prompt_logprobs == choice.prompt_logprobs
        assert {part.prompt_logprobs for part in parts[1:]} == {msgspec.UNSET}


async def test_the_first_chunk_of_a_chat_has_the_prompt_logprobs(http: httpx2.AsyncClient) -> None:
    body = {
        "model": "echo",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "n": 2,
        "prompt_logprobs": 1,
    }
    response = await http.post("/v1/chat/completions", json=body)
    expected = msgspec.json.decode(response.content, type=answer_shapes.ChatAnswer)
    response = await http.post("/v1/chat/completions", json=body | {"stream": True})
    events = [line[6:] for line in response.text.splitlines() if line][:-1]
    first, *rest = [msgspec.json.decode(each, type=answer_shapes.ChatChunk) for each in events]
    assert first.prompt_logprobs == expected.prompt_logprobs
    assert {each.prompt_logprobs for each in rest} == {msgspec.UNSET}


async def test_the_official_client_reads_it(served: Served) -> None:
    create = served.client.completions.create
    answer = await create(model="echo", prompt="ab", echo=True, logprobs=1, max_tokens=1)
    assert answer.choices[0].text == "aba"
    lists = answer.choices[0].logprobs
    assert lists is not None
    assert lists.token_logprobs == [None, -2.0, -0.5]
    stream = await create(model="echo", prompt="ab", echo=True, max_tokens=0, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "ab"
