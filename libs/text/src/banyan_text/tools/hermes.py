"""Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, text around."""

from __future__ import annotations

from collections.abc import Sequence

from banyan_text.tags import num_held_chars, split_at_tag
from banyan_text.tools.call_reader import CallReader
from banyan_text.tools.content import ContentText
from banyan_text.tools.format import TokenOf, Tool
from banyan_text.tools.grammar import call_schema, literal, repeated
from banyan_text.tools.news import ToolNews

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class Hermes:
    """See `format.ToolFormat`."""

    template_words = (OPENING,)
    special_texts = (OPENING, CLOSING)

    def parser(self) -> HermesParser:
        return HermesParser()

    def grammar(self, tools: Sequence[Tool], parallel: bool, token_of: TokenOf) -> str:
        opening, closing = literal(OPENING, token_of), literal(CLOSING, token_of)
        return (
            f"start: {repeated('call', parallel, separator='NL')}\n"
            f"call: {opening} NL object NL {closing}\n"
            f"object: %json {call_schema(tools, 'arguments')}\n"
            'NL: "\\n"\n'
        )


class HermesParser:
    """See `format.ToolParser`."""

    def __init__(self) -> None:
        self._content = ContentText()
        self._held = ""
        self._call: CallReader | None = None
        self._num_calls = 0

    def push(self, text: str) -> list[ToolNews]:
        news: list[ToolNews] = []
        rest: str | None = self._held + text
        self._held = ""
        while rest:
            rest = self._outside(rest, news) if self._call is None else self._inside(rest, news)
        return news

    def finish(self) -> list[ToolNews]:
        news: list[ToolNews] = []
        if self._call is not None and not self._call.began:
            news += self._content.push(OPENING + self._call.raw + self._held)
        elif self._call is None:
            news += self._content.push(self._held)
        return news + self._content.finish()

    def _outside(self, text: str, news: list[ToolNews]) -> str | None:
        before, behind = split_at_tag(text, OPENING)
        if behind is None:
            num_free = len(before) - num_held_chars(before, OPENING)
            before, self._held = before[:num_free], before[num_free:]
        news += self._content.push(before)
        if behind is not None:
            self._call = CallReader(self._num_calls)
        return behind

    def _inside(self, text: str, news: list[ToolNews]) -> str | None:
        """The call itself, then whatever stands between it and the closing tag, which is lost."""
        call = self._call
        assert call is not None
        if not (call.done or call.broken):
            found, text = call.push(text)
            if call.began and found:
                self._content.call()
                self._num_calls = call.index + 1
            news += found
            if call.broken and not call.began:
                self._call = None
                news += self._content.push(OPENING + call.raw)
                return text
        if not (call.done or call.broken):
            return None
        _, behind = split_at_tag(text, CLOSING)
        if behind is None:
            self._held = text[len(text) - num_held_chars(text, CLOSING) :]
            return None
        self._call = None
        return behind
