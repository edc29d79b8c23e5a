"""Parts of the grammars that force an answer to be calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from banyan_text.grammar import JSON_BLANKS
from banyan_text.tools.format import TokenOf, Tool

CALLS_MAX = 16
"""Of one answer that must be calls: a weak model that is free to go on may never end."""


def call_schema(tools: Sequence[Tool], argument_key: str) -> str:
    """The JSON schema of one call object of any of these tools."""
    calls = [
        _object({"name": {"const": tool.name}, argument_key: tool.parameters}) for tool in tools
    ]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    # As everywhere else, or a weak model fills its calls with blanks.
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_BLANKS}})


def repeated(rule: str, parallel: bool, separator: str = "") -> str:
    """`rule`, or some of it."""
    if not parallel:
        return rule
    following = f"{separator} {rule}" if separator else rule
    return f"{rule} ({following}){{0,{CALLS_MAX - 1}}}"


def literal(text: str, token_of: TokenOf) -> str:
    """Lark for a text that may be one special token."""
    token_id = token_of(text)
    return json.dumps(text) if token_id is None else f"<[{token_id}]>"


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
