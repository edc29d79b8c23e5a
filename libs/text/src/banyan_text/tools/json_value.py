"""The extent of one JSON value in a stream of characters: where it ends, not whether it is right.

Brackets and strings are counted, so that the end is known with the character that ends it; what is
between them is the model's.
"""

from __future__ import annotations

import json

DEPTH_MAX = 256
_OPENING, _CLOSING = "{[", "}]"
_BEHIND_SCALAR = ",}] \t\r\n"


class JsonValue:
    """`took_last` is False when the value's end was seen by a character that is not part of it,
    as it is with numbers. `text` is kept for strings only: others may be long."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self.took_last = True
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, character: str) -> bool:
        """Take one character; False when no value goes on like this."""
        if not self.text:
            return self._first(character)
        if self._in_string:
            self._within_string(character)
        elif self._depth:
            return self._within_brackets(character)
        elif character in _BEHIND_SCALAR:
            self.done, self.took_last = True, False
        return True

    def string(self) -> str | None:
        """The value, if it is a string."""
        if not self.text.startswith('"'):
            return None
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def _first(self, character: str) -> bool:
        self.text = character
        self._in_string = character == '"'
        self._depth = int(character in _OPENING)
        return character not in ",:}]"

    def _within_string(self, character: str) -> None:
        if not self._depth:
            self.text += character
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            self.done = not self._depth

    def _within_brackets(self, character: str) -> bool:
        if character == '"':
            self._in_string = True
        elif character in _OPENING:
            self._depth += 1
        elif character in _CLOSING:
            self._depth -= 1
            self.done = not self._depth
        return self._depth <= DEPTH_MAX
