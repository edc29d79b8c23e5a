"""How models write tool calls, one format per family.

A format knows how to read calls out of an answer's text while it streams, and how to force an
answer to be calls: a grammar. How calls of earlier turns and the list of tools are told to the
model is the chat template's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from banyan_text.tools.format import Tool, ToolFormat, ToolParser
from banyan_text.tools.hermes import Hermes
from banyan_text.tools.llama3 import Llama3
from banyan_text.tools.mistral import Mistral
from banyan_text.tools.news import CallArguments, CallBegin, Content, ToolNews

__all__ = [
    "FORMATS",
    "CallArguments",
    "CallBegin",
    "Content",
    "Tool",
    "ToolFormat",
    "ToolNews",
    "ToolParser",
    "detect",
]

FORMATS: Final[Mapping[str, ToolFormat]] = {
    "hermes": Hermes(),
    "llama3": Llama3(),
    "mistral": Mistral(),
}


def detect(template_source: str) -> str | None:
    """The format that a chat template speaks of, by words that no other template has."""
    for name, each in FORMATS.items():
        if any(word in template_source for word in each.template_words):
            return name
    return None
