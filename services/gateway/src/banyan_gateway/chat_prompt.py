"""The prompt of a conversation: the template's text, cut where the client goes on by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from banyan_gateway.errors import invalid
from banyan_gateway.messages import Message, chat_messages
from banyan_text.template import TemplateError
from banyan_text.tokenizer import Tokenizer

RESERVED: Final = ("messages", "tools", "add_generation_prompt", "continue_final_message")


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
) -> str:
    """Raises ApiError. `options` are the client's own variables for the template."""
    for name in options or ():
        if name in RESERVED:
            raise invalid(f"chat_template_kwargs.{name}", "is a field of its own")
    if continue_final_message and add_generation_prompt:
        raise invalid("add_generation_prompt", "expected false with continue_final_message")
    plain = chat_messages(messages)
    variables = {
        **(options or {}),
        "tools": tools,
        "add_generation_prompt": add_generation_prompt is not False and not continue_final_message,
    }
    try:
        text = tokenizer.render_chat(plain, variables)
    except TemplateError as error:
        raise invalid("messages", str(error)) from None
    return _up_to(text, plain[-1]["content"]) if continue_final_message else text


def _up_to(text: str, final: str) -> str:
    """The prompt without what the template puts behind the last message's content."""
    final = final.strip()
    place = text.rfind(final)
    if not final or place < 0:
        raise invalid("continue_final_message", "the template does not show the last message as is")
    return text[: place + len(final)]
