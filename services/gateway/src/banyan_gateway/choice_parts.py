"""The text of one choice taken apart: reasoning, content, tool calls, in the order they come.

Reasoning is read first, and what is left of the text for calls. Nothing here raises: what is no
reasoning and no call is content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from banyan_text.reasoning import ReasoningFormat, ReasoningSplit
from banyan_text.tools import CallArguments, CallBegin, Content, ToolFormat


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


Part = Reasoning | Content | CallBegin | CallArguments


@dataclass(frozen=True, slots=True)
class PartFormats:
    """How to take the choices of one answer apart. Of more calls than `calls_max` only the first
    ones count. `prompt_tail` is where the prompt ends: it may have opened the reasoning."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    calls_max: int | None = None
    prompt_tail: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether all text is content."""
        return self.tools is None and self.reasoning is None

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that must be written out to be seen."""
        formats = (self.tools, self.reasoning)
        return tuple(text for each in formats if each is not None for text in each.special_texts)


PLAIN: Final = PartFormats()


class ChoiceParts:
    """One choice."""

    def __init__(self, formats: PartFormats) -> None:
        reasoning, tools = formats.reasoning, formats.tools
        self._reasoning = None if reasoning is None else reasoning.parser(formats.prompt_tail)
        self._tools = None if tools is None else tools.parser()
        self._calls_max = formats.calls_max
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        split = ReasoningSplit("", text)
        if self._reasoning is not None:
            split = self._reasoning.push(text)
        return self._parts(split)

    def finish(self) -> list[Part]:
        """The text ends here."""
        parts = [] if self._reasoning is None else self._parts(self._reasoning.finish())
        if self._tools is not None:
            parts += self._counted(self._tools.finish())
        return parts

    def _parts(self, split: ReasoningSplit) -> list[Part]:
        parts: list[Part] = [Reasoning(split.reasoning)] if split.reasoning else []
        if not split.content:
            return parts
        if self._tools is None:
            return [*parts, Content(split.content)]
        return parts + self._counted(self._tools.push(split.content))

    def _counted(self, news: Sequence[Part]) -> list[Part]:
        """Without the calls that are too many."""
        kept: list[Part] = []
        for each in news:
            if isinstance(each, CallBegin | CallArguments) and self._is_too_many(each.index):
                continue
            self.num_calls += isinstance(each, CallBegin)
            kept.append(each)
        return kept

    def _is_too_many(self, index: int) -> bool:
        return self._calls_max is not None and index >= self._calls_max
