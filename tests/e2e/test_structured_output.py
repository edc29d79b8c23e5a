"""Structured output from the running mesh: a small model, and yet every answer is valid."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pydantic
import pytest
from tests.e2e.running import RunningMesh

ASK: Any = [{"role": "user", "content": "The amber key opens door 4821. Describe the amber key."}]


class Key(pydantic.BaseModel, extra="forbid"):
    color: Literal["amber", "silver"]
    door: int = pydantic.Field(ge=1, le=9999)
    names: list[Literal["one", "two"]] = pydantic.Field(min_length=1, max_length=3)


def test_parse_gives_the_clients_own_type(mesh: RunningMesh) -> None:
    with mesh.client() as client:
        answer = client.chat.completions.parse(
            model=mesh.model(), messages=ASK, response_format=Key, max_tokens=300, n=3, seed=4
        )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert choice.message.refusal is None
        assert isinstance(choice.message.parsed, Key)


def test_a_stream_with_logprobs_is_the_same_json(mesh: RunningMesh) -> None:
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "key", "strict": True, "schema": Key.model_json_schema()},
    }
    with mesh.client() as client:
        options: dict[str, Any] = {
            "model": mesh.model(),
            "messages": ASK,
            "response_format": wanted,
            "logprobs": True,
            "top_logprobs": 2,
            "temperature": 0,
            "max_tokens": 300,
        }
        whole = client.chat.completions.create(**options)
        text, said = "", ""
        for chunk in client.chat.completions.create(**options, stream=True):
            text += chunk.choices[0].delta.content or ""
            entries = chunk.choices[0].logprobs
            said += "".join(each.token for each in (entries and entries.content) or ())
    assert text == whole.choices[0].message.content
    assert said.startswith(text)  # an end token may follow
    Key.model_validate_json(text)


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[0-9]{4}-[a-f]{2}"}, "[0-9]{4}-[a-f]{2}"),
        ({"choice": ["amber", "silver"]}, "amber|silver"),
        ({"grammar": 'start: "door " NUM\nNUM: /[1-9][0-9]{3}/'}, "door [1-9][0-9]{3}"),
    ],
)
def test_other_grammars(mesh: RunningMesh, wanted: dict[str, Any], pattern: str) -> None:
    with mesh.client() as client:
        answer = client.chat.completions.create(
            model=mesh.model(),
            messages=ASK,
            max_tokens=40,
            extra_body={"structured_outputs": wanted},
        )
    assert answer.choices[0].finish_reason == "stop"
    assert re.fullmatch(pattern, answer.choices[0].message.content or "")


def test_a_bad_schema_is_a_400(mesh: RunningMesh) -> None:
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "bad", "schema": {"type": "objekt"}},
    }
    with mesh.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=mesh.model(), messages=ASK, response_format=wanted)
    assert refused.value.param == "response_format.json_schema.schema"


def test_json_whose_worker_dies_goes_on_and_is_the_same(mesh: RunningMesh) -> None:
    schema = {
        "type": "array",
        "items": {"type": "array", "items": {"enum": ["amber", "silver"]}, "maxItems": 3},
        "minItems": 30,
        "maxItems": 40,
    }
    options: dict[str, Any] = {
        "max_tokens": 1500,
        "temperature": 0,
        "extra_body": {"structured_outputs": {"json": schema}},
    }
    calm = mesh.stream(ASK[0]["content"], **options)
    killed: dict[str, int] = {}

    def kill(num_chunks: int) -> None:
        if num_chunks == 20 and not killed:
            name = mesh.streaming_worker()
            killed[name] = mesh.process(name)["num_restarts"]
            mesh.kill(name)

    heard = mesh.stream(ASK[0]["content"], kill, **options)
    ((name, num_restarts),) = killed.items()
    mesh.wait_restarted(name, num_restarts)
    assert heard.texts == calm.texts
    assert heard.finishes == ("stop",)
    assert len(json.loads(heard.texts[0])) >= 30
    assert mesh.explain(heard.request_id)["num_recoveries"] >= 1
