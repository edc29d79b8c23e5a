"""What an answer must look like: OpenAI's `response_format` and vLLM's `structured_outputs`.

Both become one `Grammar`, which is tried out before the request is taken, with the limits that
the engine has: what cannot be followed is a 400, never a failure in the middle of an answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from banyan_core.types import Grammar, GrammarKind
from banyan_gateway.errors import invalid
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_text.grammar import choice_text

CHOICES_MAX = 1024


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Always followed to the letter, `strict` or not. Without a schema any object will do."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Exactly one of them; `grammar` is Lark, in llguidance's dialect."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=CHOICES_MAX)] | None = None
    grammar: str | None = None


def wanted_grammar(
    response_format: ResponseFormat | None, structured: StructuredOutputs | None
) -> tuple[str, Grammar] | None:
    """The field that asks for a grammar, and the grammar, not checked yet."""
    formatted = None if response_format is None else _of_format(response_format)
    outputs = None if structured is None else _of_outputs(structured)
    if formatted and outputs:
        raise invalid("structured_outputs", "give either this or response_format")
    return formatted or outputs


def check_grammar(param: str, grammar: Grammar, trials: GrammarTrials) -> None:
    """Raises for a grammar that cannot be followed. Takes its time, though a bounded one."""
    if (reason := trials.refusal(grammar)) is not None:
        raise invalid(param, f"cannot be followed: {reason}")


def _of_format(wanted: ResponseFormat) -> tuple[str, Grammar] | None:
    schema = wanted.json_schema
    if (schema is not None) != (wanted.type == "json_schema"):
        raise invalid(
            "response_format.json_schema", 'expected an object with type "json_schema" only'
        )
    if wanted.type == "text":
        return None
    if schema is None or schema.schema is None:
        return "response_format", Grammar(GrammarKind.JSON_OBJECT)
    return "response_format.json_schema.schema", _of_schema(schema.schema)


def _of_outputs(wanted: StructuredOutputs) -> tuple[str, Grammar]:
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name) is not None]
    if len(given) != 1 or wanted.json_object is False:
        names = ", ".join(wanted.__struct_fields__)
        raise invalid("structured_outputs", f"expected exactly one of {names}")
    param = f"structured_outputs.{given[0]}"
    if isinstance(wanted.json, str):
        return param, Grammar(GrammarKind.JSON_SCHEMA, wanted.json)
    if wanted.json is not None:
        return param, _of_schema(wanted.json)
    if wanted.regex is not None:
        return param, Grammar(GrammarKind.REGEX, wanted.regex)
    if wanted.choice is not None:
        return param, Grammar(GrammarKind.CHOICE, choice_text(wanted.choice))
    if wanted.grammar is not None:
        return param, Grammar(GrammarKind.LARK, wanted.grammar)
    return param, Grammar(GrammarKind.JSON_OBJECT)


def _of_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, msgspec.json.encode(schema).decode())
