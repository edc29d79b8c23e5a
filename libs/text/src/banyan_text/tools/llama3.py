"""Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, or some of them with `;`.

The tag that may stand in front is a special token. An answer that begins like a call and is none,
a JSON answer say, is content.
"""

from __future__ import annotations

from collections.abc import Sequence

from banyan_text.tools.call_reader import BLANKS, CallReader
from banyan_text.tools.content import ContentText
from banyan_text.tools.format import TokenOf, Tool
from banyan_text.tools.grammar import call_schema, repeated
from banyan_text.tools.news import ToolNews

TAG = "<|python_tag|>"


class Llama3:
    """See `format.ToolFormat`."""

    template_words = (TAG, "Environment: ipython")
    special_texts = (TAG,)

    def parser(self) -> Llama3Parser:
        return Llama3Parser()

    def grammar(self, tools: Sequence[Tool], parallel: bool, token_of: TokenOf) -> str:
        return (
            f"start: {repeated('call', parallel, separator='SEPARATOR')}\n"
            f"call: %json {call_schema(tools, 'parameters')}\n"
            'SEPARATOR: "; "\n'
        )


class Llama3Parser:
    """See `format.ToolParser`."""

    def __init__(self) -> None:
        self._content = ContentText()
        self._held = ""
        self._call: CallReader | None = None
        self._num_calls = 0
        self._is_text = False

    def push(self, text: str) -> list[ToolNews]:
        news: list[ToolNews] = []
        rest = self._held + text
        self._held = ""
        while rest:
            if self._is_text:
                return news + self._content.push(rest)
            rest = self._between(rest) if self._call is None else self._read(rest, news)
        return news

    def finish(self) -> list[ToolNews]:
        raw = self._held
        if self._call is not None and not self._call.began:
            raw = self._call.raw + raw
        return [*self._content.push(raw), *self._content.finish()]

    def _between(self, text: str) -> str:
        """Blanks, the tag or a separator, then the call that follows."""
        behind = text.lstrip(BLANKS + ";" if self._num_calls else BLANKS)
        if not self._num_calls and behind.startswith(TAG):
            behind = behind[len(TAG) :].lstrip(BLANKS)
        if behind.startswith("{"):
            self._call = CallReader(self._num_calls)
            return behind
        may_follow = not behind or (not self._num_calls and TAG.startswith(behind))
        if may_follow:
            self._held = text
            return ""
        self._is_text = True
        return text

    def _read(self, text: str, news: list[ToolNews]) -> str:
        call = self._call
        assert call is not None
        found, behind = call.push(text)
        if call.began and found:
            self._content.call()
            self._num_calls = call.index + 1
        news += found
        if call.broken:
            self._is_text = True
            behind = call.raw + behind
        if call.done or call.broken:
            self._call = None
        return behind
