"""What a parser of tool calls finds in an answer, in order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call `index` of this answer, from 0, is of the tool `name`."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next part of the JSON text that call `index` has as arguments."""

    index: int
    text: str


ToolNews = Content | CallBegin | CallArguments
