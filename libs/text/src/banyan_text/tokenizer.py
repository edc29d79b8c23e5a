"""Text to token ids and back, behind one protocol.

`ByteTokenizer` (here) needs no files: it serves the echo runner and tests. `HfTokenizer` (in
`hf_tokenizer`) reads a model folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from banyan_text.detokenizer import Detokenizer
from banyan_text.template import NO_VARIABLES, ChatTemplate


class Tokenizer(Protocol):
    """All methods may be called from several threads at once."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 ≤ id < vocab_size; a few of them may stand for nothing."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens by their text. They add nothing to detokenised text."""
        ...

    @property
    def token_bytes_max(self) -> int:
        """The most bytes of text that one token can stand for."""
        ...

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Token ids of a text; `add_special` adds what the model wants around plain text (BOS).

        Special tokens that are spelt out in the text become their ids, as chat templates need it.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens, equal to what a stream of them gives in the end."""
        ...

    def decode_stream(self, shown: Collection[str] = ()) -> Detokenizer:
        """A new incremental detokeniser, for one choice; it spells out the special tokens `shown`,
        as a parser of tool calls or of reasoning needs it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token, a special one spelt out; none for an id that has no token."""
        ...

    @property
    def template_source(self) -> str:
        """The chat template as it is written, empty without one."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = NO_VARIABLES
    ) -> str:
        """The prompt for these messages; see `template`. Raises TemplateError."""
        ...


def decode_all(stream: Detokenizer, token_ids: Sequence[int]) -> str:
    """The whole text of a stream of tokens."""
    return "".join(map(stream.push, token_ids)) + stream.finish()


BYTE_SPECIAL_TOKENS: Final = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
_NUM_BYTES = 256
_BYTE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class ByteTokenizer:
    """Token ids 0 to 255 are bytes; the special tokens follow."""

    def __init__(self) -> None:
        self._special_ids = {
            token: _NUM_BYTES + index for index, token in enumerate(BYTE_SPECIAL_TOKENS)
        }
        self._split = re.compile("(" + "|".join(map(re.escape, BYTE_SPECIAL_TOKENS)) + ")")
        self._template = ChatTemplate(_BYTE_TEMPLATE, {})

    @property
    def vocab_size(self) -> int:
        return _NUM_BYTES + len(self._special_ids)

    @property
    def special_ids(self) -> Mapping[str, int]:
        return self._special_ids

    @property
    def token_bytes_max(self) -> int:
        return max(map(len, BYTE_SPECIAL_TOKENS))

    def encode(self, text: str, add_special: bool) -> list[int]:
        token_ids: list[int] = []
        for part in self._split.split(text):
            special = self._special_ids.get(part)
            token_ids.extend(part.encode() if special is None else (special,))
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode_all(self.decode_stream(), token_ids)

    def decode_stream(self, shown: Collection[str] = ()) -> Detokenizer:
        shown_ids = frozenset(i for text, i in self._special_ids.items() if text in shown)

        def visible(token_id: int) -> bytes:
            is_visible = token_id < _NUM_BYTES or token_id in shown_ids
            return self.token_bytes(token_id) if is_visible else b""

        return Detokenizer(visible)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < _NUM_BYTES:
            return bytes([token_id])
        index = token_id - _NUM_BYTES
        return BYTE_SPECIAL_TOKENS[index].encode() if index < len(BYTE_SPECIAL_TOKENS) else b""

    @property
    def template_source(self) -> str:
        return self._template.source

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] = NO_VARIABLES
    ) -> str:
        return self._template.render(messages, variables)
