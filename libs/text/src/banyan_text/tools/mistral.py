"""Mistral: `[TOOL_CALLS]`, a special token, then calls in one of two spellings.

Older models write a JSON list of `{"name": ..., "arguments": {...}}` behind one tag. Newer ones
write a tag per call, its name, perhaps `[ARGS]` and perhaps an id before it, and the arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from banyan_text.tags import num_held_chars, split_at_tag
from banyan_text.tools.call_reader import BLANKS, CallReader
from banyan_text.tools.content import ContentText
from banyan_text.tools.format import TokenOf, Tool
from banyan_text.tools.grammar import call_schema, literal, repeated
from banyan_text.tools.json_value import JsonValue
from banyan_text.tools.news import CallArguments, CallBegin, ToolNews

TAG, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAME_CHARS_MAX = 256


class Mistral:
    """See `format.ToolFormat`. The grammar is of the older spelling, which all parsers know."""

    template_words = (TAG,)
    special_texts = (TAG, ARGS, CALL_ID)

    def parser(self) -> MistralParser:
        return MistralParser()

    def grammar(self, tools: Sequence[Tool], parallel: bool, token_of: TokenOf) -> str:
        return (
            f'start: {literal(TAG, token_of)} "[" {repeated("call", parallel, "COMMA")} "]"\n'
            f"call: %json {call_schema(tools, 'arguments')}\n"
            'COMMA: ", "\n'
        )


class _In(Enum):
    CONTENT = auto()
    TAG = auto()  # behind a tag: a list or a name follows
    LIST = auto()
    NAME = auto()
    ARGUMENTS = auto()


class MistralParser:
    """See `format.ToolParser`."""

    def __init__(self) -> None:
        self._content = ContentText()
        self._in = _In.CONTENT
        self._held = ""
        self._call: CallReader | None = None
        self._value = JsonValue()
        self._num_calls = 0
        self._readers = {
            _In.CONTENT: self._read_content,
            _In.TAG: self._read_tag,
            _In.LIST: self._read_list,
            _In.NAME: self._read_name,
            _In.ARGUMENTS: self._read_arguments,
        }

    def push(self, text: str) -> list[ToolNews]:
        news: list[ToolNews] = []
        rest = self._held + text
        self._held = ""
        while rest:
            rest = self._readers[self._in](rest, news)
        return news

    def finish(self) -> list[ToolNews]:
        raw = self._held
        if self._in in (_In.TAG, _In.NAME):
            raw = TAG + raw
        elif self._call is not None:
            raw = "" if self._call.began else f"{TAG}[{self._call.raw}{raw}"
        elif self._in is not _In.CONTENT:
            raw = ""
        return [*self._content.push(raw), *self._content.finish()]

    def _read_content(self, text: str, news: list[ToolNews]) -> str:
        before, behind = split_at_tag(text, TAG)
        if behind is None:
            num_free = len(before) - num_held_chars(before, TAG)
            before, self._held = before[:num_free], before[num_free:]
        else:
            self._in = _In.TAG
        news += self._content.push(before)
        return behind or ""

    def _read_tag(self, text: str, news: list[ToolNews]) -> str:
        stripped = text.lstrip(BLANKS)
        if not stripped:
            self._held = text
            return ""
        self._in = _In.NAME
        if stripped[0] == "[":
            self._in, self._call = _In.LIST, CallReader(self._num_calls)
            return stripped[1:]
        return stripped

    def _read_list(self, text: str, news: list[ToolNews]) -> str:
        if self._call is None:
            return self._next_of_list(text)
        call = self._call
        found, behind = call.push(text)
        if call.began and found:
            self._called()
        news += found
        if call.broken and not call.began:
            first = call.index == 0
            news += self._content.push((f"{TAG}[" if first else "") + call.raw)
            self._in = _In.CONTENT
        if call.done or call.broken:
            self._call = None
        return behind

    def _next_of_list(self, text: str) -> str:
        rest = text.lstrip(BLANKS)
        if rest.startswith(","):
            self._call = CallReader(self._num_calls)
        elif rest:
            self._in = _In.CONTENT
        return rest[1:] if rest[:1] in (",", "]") else rest

    def _read_name(self, text: str, news: list[ToolNews]) -> str:
        place = text.find("{")
        if place < 0:
            self._held = text
            if len(text) > NAME_CHARS_MAX:
                self._to_content(news)
            return ""
        name = text[:place].partition(ARGS)[0].partition(CALL_ID)[0].strip()
        if not name or len(name) > NAME_CHARS_MAX or "\n" in name:
            self._held = text
            self._to_content(news)
            return ""
        news.append(CallBegin(self._num_calls, name))
        self._num_calls += 1
        self._content.call()
        self._in, self._value = _In.ARGUMENTS, JsonValue()
        return text[place:]

    def _to_content(self, news: list[ToolNews]) -> None:
        news += self._content.push(TAG + self._held)
        self._in, self._held = _In.CONTENT, ""

    def _read_arguments(self, text: str, news: list[ToolNews]) -> str:
        for place, character in enumerate(text):
            going = self._value.push(character)
            if self._value.done or not going:
                self._in = _In.CONTENT
                news.append(CallArguments(self._num_calls - 1, text[: place + 1]))
                return text[place + 1 :]
        news.append(CallArguments(self._num_calls - 1, text))
        return ""

    def _called(self) -> None:
        assert self._call is not None
        self._num_calls = self._call.index + 1
        self._content.call()
