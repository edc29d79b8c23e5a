"""What the formats of tool calls have in common, for whoever uses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from banyan_text.tools.news import ToolNews

TokenOf = Callable[[str], int | None]
"""The id of a special token by its text; None when the text is spelled with plain tokens."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object"})


class ToolParser(Protocol):
    """Reads one choice. The news do not depend on how the text was cut into pieces, except that
    text and arguments come in pieces themselves. Nothing raises: what is no call is content."""

    def push(self, text: str) -> list[ToolNews]: ...

    def finish(self) -> list[ToolNews]:
        """The text ends here."""
        ...


class ToolFormat(Protocol):
    """`special_texts` are special tokens that must be written out for the parser to see them."""

    @property
    def template_words(self) -> tuple[str, ...]: ...

    @property
    def special_texts(self) -> tuple[str, ...]: ...

    def parser(self) -> ToolParser: ...

    def grammar(self, tools: Sequence[Tool], parallel: bool, token_of: TokenOf) -> str:
        """A Lark grammar, in llguidance's dialect, of answers that are calls of `tools` only."""
        ...
