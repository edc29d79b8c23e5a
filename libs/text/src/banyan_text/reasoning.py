"""Reasoning apart from the answer, for models that mark it with a pair of tags.

The model says where its reasoning ends; where it begins, either the model says or the chat
template has said already, at the end of the prompt. Only an answer's very beginning can open it: a
tag in the middle of a text is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from banyan_text.tags import num_held_chars, split_at_tag


class ReasoningSplit(NamedTuple):
    """What may be sent now of either."""

    reasoning: str
    content: str


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A pair of tags. `special_texts` are special tokens that must be written out to be seen."""

    opening: str
    closing: str
    special_texts: tuple[str, ...] = ()

    def parser(self, prompt_tail: str) -> ReasoningParser:
        """For an answer to a prompt that ends with `prompt_tail`."""
        return ReasoningParser(self, prompt_tail.rstrip().endswith(self.opening))


FORMATS: Final[Mapping[str, ReasoningFormat]] = {
    "think": ReasoningFormat("<think>", "</think>", ("<think>", "</think>")),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]", ("[THINK]", "[/THINK]")),
}


def detect(template_source: str) -> str | None:
    """The format whose closing tag a chat template mentions."""
    for name, each in FORMATS.items():
        if each.closing in template_source:
            return name
    return None


class _Part(Enum):
    BEFORE = auto()  # nothing but blanks so far
    REASONING = auto()
    BETWEEN = auto()  # blanks behind the closing tag
    CONTENT = auto()


class ReasoningParser:
    """One choice. Blanks just inside and behind the tags belong to neither part."""

    def __init__(self, tags: ReasoningFormat, opened: bool) -> None:
        self._tags = tags
        self._part = _Part.REASONING if opened else _Part.BEFORE
        self._held = ""
        self._began = False

    def push(self, text: str) -> ReasoningSplit:
        if self._part is _Part.CONTENT:
            return ReasoningSplit("", text)
        self._held += text
        if self._part is _Part.BEFORE:
            self._open()
        reasoning = self._reason() if self._part is _Part.REASONING else ""
        return ReasoningSplit(reasoning, self._content())

    def finish(self) -> ReasoningSplit:
        """The text ends here: what was held back is what it is."""
        held, self._held = self._held, ""
        if self._part is _Part.REASONING:
            return ReasoningSplit(self._trimmed(held).rstrip(), "")
        return ReasoningSplit("", "" if self._part is _Part.BETWEEN else held)

    def _open(self) -> None:
        stripped = self._held.lstrip()
        if stripped.startswith(self._tags.opening):
            self._part = _Part.REASONING
            self._held = stripped[len(self._tags.opening) :]
        elif not self._tags.opening.startswith(stripped):
            self._part = _Part.CONTENT

    def _reason(self) -> str:
        before, behind = split_at_tag(self._held, self._tags.closing)
        if behind is not None:
            self._part, self._held = _Part.BETWEEN, behind
            return self._trimmed(before).rstrip()
        # Blanks wait as well: if the closing tag follows, they are not part of the reasoning.
        num_free = len(before) - num_held_chars(before, self._tags.closing)
        free = before[:num_free].rstrip()
        self._held = before[len(free) :]
        return self._trimmed(free)

    def _trimmed(self, reasoning: str) -> str:
        if not self._began:
            reasoning = reasoning.lstrip()
            self._began = bool(reasoning)
        return reasoning

    def _content(self) -> str:
        if self._part is _Part.BETWEEN:
            self._held = self._held.lstrip()
            if self._held:
                self._part = _Part.CONTENT
        if self._part is not _Part.CONTENT:
            return ""
        content, self._held = self._held, ""
        return content
