"""Tokens to text, one at a time, without ever giving half a character.

A token is a run of bytes and may end in the middle of a character. The bytes of all tokens, one
after the other, are decoded as UTF-8 incrementally: the text of a stream is therefore equal to
the text of the whole, however the tokens arrive.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns one choice's tokens into text.

    `token_bytes` gives the bytes that a token adds (empty for special tokens);
    `num_leading_spaces` are dropped from the very beginning, as tokenizers with a dummy prefix
    want it.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], num_leading_spaces: int = 0) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_spaces_to_drop = num_leading_spaces
        self.has_partial = False
        """Whether the last token ended in the middle of a character."""

    def push(self, token_id: int) -> str:
        """The text that became final with this token; often empty within a character."""
        data = self._token_bytes(token_id)
        if not self.has_partial:
            try:  # whole characters, as nearly always, need no decoder that remembers
                return self._drop_spaces(data.decode())
            except UnicodeDecodeError:
                pass
        text = self._decoder.decode(data)
        self.has_partial = bool(self._decoder.getstate()[0])
        return self._drop_spaces(text)

    def finish(self) -> str:
        """The end: bytes that never became a character come out as U+FFFD."""
        self.has_partial = False
        return self._drop_spaces(self._decoder.decode(b"", final=True))

    def _drop_spaces(self, text: str) -> str:
        if self._num_spaces_to_drop and text:
            while self._num_spaces_to_drop and text.startswith(" "):
                text = text[1:]
                self._num_spaces_to_drop -= 1
            if text:
                self._num_spaces_to_drop = 0
        return text
