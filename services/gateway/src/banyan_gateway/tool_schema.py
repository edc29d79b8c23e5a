"""Tools as a client describes them, and whether the model may, must or must not call them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

TOOLS_MAX = 128
FunctionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Function(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`parameters` is a JSON schema. It is followed to the letter, `strict` or not, where a call
    is required; elsewhere the model only reads it."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: FunctionName


class NamedTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[ToolBody], Meta(max_length=TOOLS_MAX)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
