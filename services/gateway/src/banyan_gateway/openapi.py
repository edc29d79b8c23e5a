"""`/openapi.json`: what the routes take and give, made from the types that check it.

`OPERATIONS` is the table of the routes: `api` serves what stands in it, this page describes it.
There is no page to look at, since those that exist load their scripts from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from banyan_core.types import ModelCard
from banyan_gateway import answer_shapes, request_timeout
from banyan_gateway.messages import MESSAGE_NOT_YET
from banyan_gateway.schema import (
    HARMLESS,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    not_yet,
)

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
TEXT: Final = "text/plain"
_REF = "#/components/schemas/{name}"
_BODY_REFUSALS = (400, 404, 408, 413, 415)
_WITH_RETRY_AFTER = (429, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `name` is the function of `Api` that serves it; `answer` None is an empty body."""

    method: str
    path: str
    name: str
    summary: str
    answer: type | None = None
    body: type | None = None
    chunk: type | None = None
    refusals: tuple[int, ...] = ()
    is_open: bool = False

    @property
    def statuses(self) -> tuple[int, ...]:
        from_body = _BODY_REFUSALS if self.body else (400,)
        from_key = () if self.is_open else (401,)
        return tuple(sorted({*from_body, *from_key, *self.refusals, 500}))


OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/chat/completions",
        "chat",
        "Answer a conversation",
        answer_shapes.ChatAnswer,
        ChatBody,
        answer_shapes.ChatChunk,
        refusals=_WITH_RETRY_AFTER,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "completion",
        "Continue one or more texts",
        answer_shapes.CompletionAnswer,
        CompletionBody,
        answer_shapes.CompletionChunk,
        refusals=_WITH_RETRY_AFTER,
    ),
    Operation("GET", "/v1/models", "models", "The model and its adapters", answer_shapes.Models),
    Operation(
        "GET",
        "/v1/models/{model_id}",
        "model",
        "One model",
        answer_shapes.Model,
        refusals=(404,),
    ),
    Operation(
        "GET",
        "/v1/requests/{name}",
        "explain",
        "Where a request ran, why, and where its time went; by the answer's id or x-request-id",
        dict,
        refusals=(404,),
    ),
    Operation(
        "POST", "/tokenize", "tokenize", "Text to tokens", answer_shapes.Tokens, TokenizeBody
    ),
    Operation(
        "POST", "/detokenize", "detokenize", "Tokens to text", answer_shapes.Text, DetokenizeBody
    ),
    Operation("GET", "/health", "health", "The process serves", is_open=True),
    Operation(
        "GET",
        "/ready",
        "ready",
        "Requests can be served",
        answer_shapes.Readiness,
        refusals=(503,),
        is_open=True,
    ),
    Operation("GET", "/metrics", "metrics", "Figures for Prometheus", str),
    Operation("GET", "/version", "version", "This gateway's version", answer_shapes.Version),
    Operation("GET", "/openapi.json", "openapi", "This page", dict),
)


@lru_cache(maxsize=1)
def page(
    card: ModelCard, models: tuple[str, ...], vocab_size: int, version: str, needs_key: bool
) -> bytes:
    """The document, for what is served now: token ids and lengths have the model's bounds."""
    paths: dict[str, dict[str, object]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, needs_key)
    components: dict[str, object] = {"schemas": _schemas(card, models, vocab_size)}
    document = {
        "openapi": "3.2.0",  # the first version that describes events
        "info": {"title": "Banyan", "version": version, "description": _ABOUT},
        "paths": paths,
        "components": components,
    }
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return msgspec.json.encode(document)


_ABOUT = (
    "OpenAI's API, served by a mesh. `null` means absent in every field. Every refusal has the "
    "shape `Error`; 429 and 503 say in Retry-After when to come back. A stream ends with "
    "`data: [DONE]`, or with an event of shape `Error` and without it: one that merely stops is "
    "broken."
)


def _operation(each: Operation, needs_key: bool) -> dict[str, object]:
    statuses = [status for status in each.statuses if needs_key or status != 401]
    described: dict[str, object] = {
        "operationId": each.name,
        "summary": each.summary,
        "parameters": _parameters(each),
        "responses": {"200": _answer(each)}
        | {str(code): _refusal(each, code) for code in statuses},
    }
    if needs_key and not each.is_open:
        described["security"] = [{"key": []}]
    if each.body is not None:
        content = {JSON: {"schema": _ref(each.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


_ID = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_REQUEST_ID_PARAMETER: dict[str, object] = {
    "name": "x-request-id",
    "in": "header",
    "description": "the client's own name for this request; without one, the gateway makes one",
    "schema": _ID,
}
_TIMEOUT_PARAMETER: dict[str, object] = {
    "name": request_timeout.HEADER,
    "in": "header",
    "description": "how long the client waits for the whole answer, from its arrival on: one "
    "that cannot be kept is refused at once, one that was begun ends then",
    "schema": {"type": "integer", "minimum": 1, "maximum": request_timeout.TIMEOUT_MS_MAX},
}
_HEADERS: Mapping[str, object] = {
    "x-request-id": {"description": "echoed, or made here", "required": True, "schema": _ID}
}
_RETRY_AFTER = {
    "description": "seconds after which to come back",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
_IGNORED = {
    "description": "fields that were accepted and have no effect",
    "schema": {"type": "string"},
}


def _parameters(each: Operation) -> list[dict[str, object]]:
    generates = [_TIMEOUT_PARAMETER] if each.chunk is not None else []
    return [_REQUEST_ID_PARAMETER, *generates, *_path_parameters(each.path)]


def _path_parameters(path: str) -> list[dict[str, object]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in names
    ]


def _answer(each: Operation) -> dict[str, object]:
    headers = dict(_HEADERS)
    content: dict[str, object] = {}
    if each.answer is str:
        content[TEXT] = {"schema": {"type": "string"}}
    elif each.answer is not None:
        content[JSON] = {"schema": {"type": "object"} if each.answer is dict else _ref(each.answer)}
    if each.chunk is not None:
        headers["x-banyan-ignored-fields"] = _IGNORED
        content[EVENTS] = {"itemSchema": _event(each.chunk)}
    described: dict[str, object] = {"description": each.summary, "headers": headers}
    return described | ({"content": content} if content else {})


def _event(chunk: type) -> dict[str, object]:
    about = f"JSON of the schema {chunk.__name__}, or of Error if the answer breaks; then [DONE]"
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "description": about}},
        "x-data": {"oneOf": [_ref(chunk), _ref(answer_shapes.Error)]},
    }


def _refusal(each: Operation, status: int) -> dict[str, object]:
    headers = dict(_HEADERS)
    if status in _WITH_RETRY_AFTER:
        headers["retry-after"] = _RETRY_AFTER
    # That a gateway is not ready is the answer to the question, not a refusal to answer it.
    shape = each.answer if each.name == "ready" and status == 503 else answer_shapes.Error
    assert shape is not None
    return {
        "description": HTTPStatus(status).phrase,
        "headers": headers,
        "content": {JSON: {"schema": _ref(shape)}},
    }


def _ref(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _schemas(card: ModelCard, models: tuple[str, ...], vocab_size: int) -> dict[str, Any]:
    """The types' own schemas, with what depends on the model or on `validate` put in."""
    kinds: list[type] = [answer_shapes.Error]
    for each in OPERATIONS:
        mentioned = (each.body, each.answer, each.chunk)
        kinds += [kind for kind in mentioned if kind and kind not in (str, dict)]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(kinds), ref_template=_REF)
    for kind in (ChatBody, CompletionBody):
        properties = schemas[kind.__name__]["properties"]
        properties["model"] = {"enum": list(models)}
        for field in not_yet(kind):
            properties[field] = {"enum": [None, HARMLESS[field]]} if field in HARMLESS else _NULL
        for field in ("max_tokens", "max_completion_tokens", "min_tokens"):
            if field in properties:
                properties[field]["anyOf"][0]["maximum"] = card.context_tokens - 1
    for field in MESSAGE_NOT_YET:
        schemas["Message"]["properties"][field] = _NULL
    for name in ("TokenizeBody", "DetokenizeBody"):
        schemas[name]["properties"]["model"] = {"enum": [*models, None]}
    _bound_token_ids(schemas, vocab_size)
    return schemas


_NULL: Mapping[str, str] = {"type": "null"}


def _bound_token_ids(schemas: dict[str, Any], vocab_size: int) -> None:
    """Every array of token ids in a body gets the vocabulary's bound."""
    for name in ("ChatBody", "CompletionBody", "DetokenizeBody"):
        pending: list[object] = [schemas[name]]
        while pending:
            node = pending.pop()
            if isinstance(node, list):
                pending += node
            elif isinstance(node, dict):
                if node.get("type") == "array" and node.get("items", {}).get("type") == "integer":
                    node["items"] = {"type": "integer", "minimum": 0, "maximum": vocab_size - 1}
                pending += node.values()
