"""msgspec's complaints in the API's words: which field, and what was expected there.

The limits in a message come from the schema of the very type that refused the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from banyan_gateway.errors import ApiError, invalid

_PATH = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\[(?P<index>[^\]]*)\]|(?P<name>[^.\[]+)")
_MAX_NAME_CHARS = 100
_TYPE_NAMES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def explain(text: str, kind: type) -> ApiError:
    """400 for msgspec's message `text` about a body that should have been a `kind`."""
    match = _PATH.fullmatch(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    for pattern, verdict in ((_UNKNOWN, "unknown field"), (_MISSING, "is required")):
        name = pattern.fullmatch(what)
        if name:
            param = f"{path}.{name[1][:_MAX_NAME_CHARS]}" if path else name[1][:_MAX_NAME_CHARS]
            return invalid(param, verdict)
    if "got `" in what or not path:
        words = re.sub(r"`([^`]*)`", lambda found: _types(found[1]), what)
        return invalid(path or "body", words[:1].lower() + words[1:])
    expected = " or ".join(dict.fromkeys(map(_expected, _at(kind, path))))
    return invalid(path, f"expected {expected}")


def _types(names: str) -> str:
    known = [name for name in names.split(" | ") if name != "null" or names == "null"]
    return " or ".join(_TYPE_NAMES.get(name, name) for name in known)


@cache
def _schema(kind: type) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    (root,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    return root, components


def _at(kind: type, path: str) -> list[Mapping[str, Any]]:
    """The alternatives that the schema of `kind` has for the value at a path."""
    root, components = _schema(kind)
    found = _alternatives(root, components)
    for step in _STEP.finditer(path):
        inner = [
            each["items"] if step["name"] is None else each["properties"][step["name"]]
            for each in found
            if ("items" if step["name"] is None else "properties") in each
        ]
        found = [one for each in inner for one in _alternatives(each, components)]
    return found


def _alternatives(
    schema: Mapping[str, Any], components: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    if "$ref" in schema:
        return _alternatives(components[schema["$ref"]], components)
    if "anyOf" in schema and "type" not in schema:
        return [one for each in schema["anyOf"] for one in _alternatives(each, components)]
    return [] if schema.get("type") == "null" else [schema]


def _expected(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    kind = schema.get("type", "a value")
    if kind in ("integer", "number"):
        return _number("a whole number" if kind == "integer" else "a number", schema)
    if kind == "string" and "pattern" in schema:
        return f"a string that matches {schema['pattern']}"
    if kind == "string":
        return _sized("a string", "characters", schema, "Length")
    if kind == "array":
        return _sized("an array", "items", schema, "Items")
    return _sized("an object", "entries", schema, "Properties")


def _number(name: str, schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f"{name} above {schema['exclusiveMinimum']} and up to {high}"
    if low is not None and high is not None:
        return f"{name} from {low} to {high}"
    return f"{name} of at least {low}"


def _sized(name: str, unit: str, schema: Mapping[str, Any], suffix: str) -> str:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if low is not None and high is not None:
        return f"{name} of {low} to {high} {unit}"
    if high is not None:
        return f"{name} of at most {high} {unit}"
    return name if low is None else f"{name} of at least {low} {unit}"
