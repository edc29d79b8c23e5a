"""Chat templates: Jinja from the model's folder, run in a sandbox, bounded, errors made clear.

The template is part of the model, the messages come from outside. Nothing else is ever compiled:
a client cannot send a template. The environment has what published templates use
(`raise_exception`, `tojson`, loop controls) and no clock, so that equal messages give equal
prompts on every gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Never

from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_CHARS_MAX = 256 * 1024
RENDERED_CHARS_MAX = 16 * 1024 * 1024


NO_VARIABLES: Final[Mapping[str, Any]] = {}


class TemplateError(Exception):
    """The chat template cannot be used, or refuses these messages; the message says why."""


def _raise_exception(message: str) -> Never:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, with the options that templates know; Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


class ChatTemplate:
    """A compiled template. Raises TemplateError when the source is too long or no valid Jinja."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > TEMPLATE_CHARS_MAX:
            raise TemplateError(f"the chat template is longer than {TEMPLATE_CHARS_MAX} characters")
        try:
            self._template = _environment().from_string(source)
        except JinjaError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = NO_VARIABLES
    ) -> str:
        """The prompt for these messages, up to where the assistant begins to speak.

        `variables` are what else the template is told: tools, say. Raises TemplateError when the
        template refuses them, fails, or gives too much text.
        """
        told = {"tools": None, "add_generation_prompt": True, **self._special_tokens, **variables}
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in self._template.generate(
                told, messages=[dict(message) for message in messages]
            ):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > RENDERED_CHARS_MAX:
                    raise TemplateError(f"the prompt exceeds {RENDERED_CHARS_MAX} characters")
        except (JinjaError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"the chat template failed: {error}") from error
        except RecursionError:
            raise TemplateError("the chat template recurses too deeply") from None
        return "".join(pieces)
