"""One call, `{"name": ..., "arguments": {...}}`, read while it is being written.

The arguments leave as the text that the model wrote, piece by piece; only the name must be whole
before anything leaves. A character costs the same wherever it stands, so a long call is no slower
per token than a short one.
"""

from __future__ import annotations

from enum import Enum, auto

from banyan_text.tools.json_value import JsonValue
from banyan_text.tools.news import CallArguments, CallBegin, ToolNews

ARGUMENT_KEYS = ("arguments", "parameters")
BLANKS = " \t\r\n"
RAW_CHARS_MAX = 1 << 16
"""A call whose name has not come by then is taken for text."""


class _At(Enum):
    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()


class CallReader:
    """Reads call `index`. `raw` is its text until it began, to be shown if it never does."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.raw = ""
        self.began = False
        self.done = False
        self.broken = False
        self._at = _At.START
        self._key = ""
        self._value = JsonValue()
        self._arguments = ""
        self._has_arguments = False

    def push(self, text: str) -> tuple[list[ToolNews], str]:
        """What is new, and the text that follows the call (or the fault, if it is broken now)."""
        news: list[ToolNews] = []
        for place, character in enumerate(text):
            if not self._take(character, news):
                self.broken = True
                return self._flushed(news), text[place:]
            if not self.began:
                self.raw += character
                if len(self.raw) > RAW_CHARS_MAX:
                    self.broken = True
            if self.done or self.broken:
                return self._flushed(news), text[place + 1 :]
        return self._flushed(news), ""

    def _take(self, character: str, news: list[ToolNews]) -> bool:
        """One character further; False when no call goes on like this."""
        if self._at is _At.VALUE or self._at is _At.KEY:
            return self._take_of_value(character, news)
        if character in BLANKS:
            return True
        match self._at, character:
            case _At.START, "{":
                self._expect(_At.KEY)
            case _At.COLON, ":":
                self._expect(_At.VALUE)
            case _At.COMMA, ",":
                self._expect(_At.KEY)
            case _At.COMMA, "}":
                return self._close(news)
            case _:
                return False
        return True

    def _expect(self, what: _At) -> None:
        self._at = what
        self._value = JsonValue()

    def _take_of_value(self, character: str, news: list[ToolNews]) -> bool:
        if not self._value.text and character in BLANKS:
            return True
        if self._at is _At.KEY and not self._value.text and character != '"':
            return False
        is_argument = self._at is _At.VALUE and self._key in ARGUMENT_KEYS
        if not self._value.push(character):
            return False
        if is_argument and self._value.took_last:
            self._has_arguments = True
            self._arguments += character
        if not self._value.done:
            return True
        if not self._end_value(news):
            return False
        return self._value.took_last or self._take(character, news)

    def _end_value(self, news: list[ToolNews]) -> bool:
        if self._at is _At.KEY:
            self._key = self._value.string() or ""
            self._at = _At.COLON
            return True
        self._at = _At.COMMA
        if self._key != "name":
            return True
        name = self._value.string()
        if not name or self.began:
            return False
        self._begin(name, news)
        return True

    def _begin(self, name: str, news: list[ToolNews]) -> None:
        self.began = True
        self.raw = ""
        news.append(CallBegin(self.index, name))

    def _close(self, news: list[ToolNews]) -> bool:
        if not self.began:
            return False
        if not self._has_arguments:
            self._arguments = "{}"
        self.done = True
        return True

    def _flushed(self, news: list[ToolNews]) -> list[ToolNews]:
        if self.began and self._arguments:
            news.append(CallArguments(self.index, self._arguments))
            self._arguments = ""
        return news
