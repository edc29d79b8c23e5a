"""Messages of a conversation: what a client may send, and what a chat template gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from banyan_gateway.errors import invalid

ROLES: Final = {"developer": "system"}
"""Roles that templates know by another name."""
MESSAGE_NOT_YET: Final = ("audio", "function_call")


class ContentPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text"]
    text: str


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`arguments` is the text of a JSON object."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`index` is what a client may have kept of a stream."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: Any = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


Messages = Annotated[list[Message], Meta(min_length=1)]


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates take them: text for content, objects for arguments."""
    return [_message(f"messages[{index}]", each) for index, each in enumerate(messages)]


def _message(param: str, message: Message) -> dict[str, Any]:
    for name in MESSAGE_NOT_YET:
        if getattr(message, name) is not None:
            raise invalid(f"{param}.{name}", "is not supported yet", "unsupported_parameter")
    _check_role(param, message)
    if message.content is None and not message.tool_calls:
        raise invalid(f"{param}.content", "is required")
    plain: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": _content(message.content or ""),
    }
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            plain[name] = getattr(message, name)
    if message.tool_calls:
        plain["tool_calls"] = [
            _tool_call(f"{param}.tool_calls[{index}]", each)
            for index, each in enumerate(message.tool_calls)
        ]
    return plain


def _check_role(param: str, message: Message) -> None:
    for name in ("tool_calls", "reasoning_content"):
        if getattr(message, name) and message.role != "assistant":
            raise invalid(f"{param}.{name}", "only an assistant's message has them")
    if (message.role == "tool") != (message.tool_call_id is not None):
        raise invalid(f"{param}.tool_call_id", "a tool's message has one, and no other does")


def _content(content: str | list[ContentPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _tool_call(param: str, call: ToolCall) -> dict[str, Any]:
    function = {
        "name": call.function.name,
        "arguments": _arguments(f"{param}.function.arguments", call.function.arguments),
    }
    return {"id": call.id, "type": "function", "function": function}


def _arguments(param: str, text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise invalid(param, "expected the text of a JSON object") from None
