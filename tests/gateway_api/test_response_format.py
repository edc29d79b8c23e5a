"""`response_format` and `structured_outputs`: the grammar that is asked for, and refusals."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pydantic
import pytest
from tests.gateway_api.conftest import Served
from tests.gateway_api.echo_gateway import EchoGateway

from banyan_core.types import Grammar, GrammarKind
from banyan_text.grammar import Grammars
from banyan_text.tokenizer import ByteTokenizer

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


def format_of(schema: object, **more: object) -> dict[str, Any]:
    wanted = {"name": "thing", "schema": schema, "strict": True, **more}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def outputs(**wanted: object) -> dict[str, Any]:
    return {"structured_outputs": wanted}


GRAMMARS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar(GrammarKind.JSON_OBJECT)),
    (format_of(None), Grammar(GrammarKind.JSON_OBJECT)),
    (
        format_of(SCHEMA),
        Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":"))),
    ),
    (outputs(json='{"type": "null"}'), Grammar(GrammarKind.JSON_SCHEMA, '{"type": "null"}')),
    (outputs(json={"type": "null"}), Grammar(GrammarKind.JSON_SCHEMA, '{"type":"null"}')),
    (outputs(json_object=True), Grammar(GrammarKind.JSON_OBJECT)),
    (outputs(regex="[ab]+"), Grammar(GrammarKind.REGEX, "[ab]+")),
    (outputs(choice=["yes", "é"]), Grammar(GrammarKind.CHOICE, '["yes", "é"]')),
    (outputs(grammar='start: "a"'), Grammar(GrammarKind.LARK, 'start: "a"')),
]


@pytest.mark.parametrize(("change", "grammar"), GRAMMARS)
async def test_what_is_asked_for_reaches_the_engine(
    http: httpx2.AsyncClient, gateway: EchoGateway, change: dict[str, Any], grammar: Grammar | None
) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "echo", "prompt": "x"}),
    ):
        response = await http.post(path, json=body | change)
        assert response.status_code == 200, response.text
        assert gateway.requests[-1].sampling.grammar == grammar


deep: dict[str, Any] = {}
for _ in range(200):
    deep = {"properties": {"a": deep}}
IN_SCHEMA = "response_format.json_schema.schema"
REFUSED = [
    (format_of({"type": "objekt"}), IN_SCHEMA, "objekt"),
    (format_of({"$ref": "#/$defs/none"}), IN_SCHEMA, "does not exist"),
    (format_of({"type": "integer", "minimum": 2, "maximum": 1}), IN_SCHEMA, "greater than"),
    (format_of({"description": "x" * 70_000}), IN_SCHEMA, "longer than 65536 bytes"),
    (format_of(deep), IN_SCHEMA, "recursion limit"),
    (format_of("nothing"), IN_SCHEMA, "expected an object"),
    (format_of(SCHEMA, name="with blank"), "response_format.json_schema.name", ""),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", ""),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a"}}},
        "response_format.json_schema",
        "",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", ""),
    (outputs(), "structured_outputs", "exactly one of"),
    (outputs(regex="a", choice=["a"]), "structured_outputs", "exactly one of"),
    (outputs(json_object=False), "structured_outputs", "exactly one of"),
    (outputs(regex="a("), "structured_outputs.regex", "unclosed group"),
    (outputs(choice=[]), "structured_outputs.choice", "1 to 1024 items"),
    (outputs(choice=["a", ""]), "structured_outputs.choice", "empty"),
    (outputs(grammar="start: none"), "structured_outputs.grammar", "none"),
    (outputs(json="{"), "structured_outputs.json", "EOF"),
    (outputs(regex="a") | {"response_format": {"type": "json_object"}}, "structured_outputs", ""),
    (outputs(regex="a") | {"min_tokens": 2}, "min_tokens", "expected 0"),
]


@pytest.mark.parametrize(("change", "param", "reason"), REFUSED)
async def test_what_cannot_be_followed_is_refused_by_name(
    http: httpx2.AsyncClient, gateway: EchoGateway, change: dict[str, Any], param: str, reason: str
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]
    assert len(response.content) < 2000
    assert not gateway.requests


class Pet(pydantic.BaseModel):
    name: str
    age: int


async def test_the_clients_own_schema_is_one_that_can_be_followed(served: Served) -> None:
    said = b'{"name":"Rex","age":3}'
    answer = await served.client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=3,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "Pet", "schema": Pet.model_json_schema()},
        },
    )
    assert answer.choices[0].message.refusal is None
    grammar = served.gateway.requests[-1].sampling.grammar
    assert grammar is not None
    state = Grammars(ByteTokenizer(), (257,)).open(grammar, list(said))
    assert state.is_finished
