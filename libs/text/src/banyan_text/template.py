"""Chat templates: Jinja from the model's folder, run in a sandbox, bounded, errors made clear.

The template is part of the model, the messages come from outside. Nothing else is ever compiled:
a client cannot send a template. The environment has what published templates use
(`raise_exception`, `tojson`, loop controls) and no clock, so that equal messages give equal
prompts on every gateway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Never

from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_CHARS_MAX = 256 * 1024
RENDERED_CHARS_MAX = 16 * 1024 * 1024


class TemplateError(Exception):
    """The chat template cannot be used, or refuses these messages; the message says why."""


def _raise_exception(message: str) -> Never:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


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
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for these messages, up to where the assistant begins to speak.

        Raises TemplateError when the template refuses them, fails, or gives too much text.
        """
        pieces: list[str] = []
        num_chars = 0
        try:
            for piece in self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._special_tokens,
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
