"""A tokenizer's vocabulary as llguidance wants to see it: bytes of every token, and a way back.

Where a grammar leaves one continuation only, llguidance asks how that text is written in tokens,
so that forced text looks to the model as it did in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

_NUM_KNOWN = 4096
_KNOWN_CHARS_MAX = 128
"""The names of an object's fields are forced again and again: a tokenizer takes 50 us for each."""


class Spelling(Protocol):
    """What a vocabulary needs of a `Tokenizer`, which is one."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> Mapping[str, int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def encode(self, text: str, add_special: bool) -> list[int]: ...


class Vocabulary:
    """`size` tokens, those past the tokenizer's own included; without a token, no bytes."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Spelling, size: int, end_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.special_token_ids = list(tokenizer.special_ids.values())
        self._special = frozenset(self.special_token_ids)
        self._ids = {
            data: token_id
            for token_id, data in reversed(list(enumerate(self.tokens)))
            if data and token_id not in self._special
        }
        self._token_bytes_max = max(map(len, self._ids), default=1)
        self._known = lru_cache(_NUM_KNOWN)(self._encode)

    def __call__(self, text: str) -> list[int]:
        """The model's own way to write it if that is exact, else the longest tokens that fit."""
        return self._known(text) if len(text) <= _KNOWN_CHARS_MAX else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        data = text.encode()
        token_ids = self._tokenizer.encode(text, add_special=False)
        exact = b"".join(map(self.tokens.__getitem__, token_ids)) == data
        if exact and self._special.isdisjoint(token_ids):
            return token_ids
        return self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        token_ids = []
        start = 0
        while start < len(data):
            for end in range(min(len(data), start + self._token_bytes_max), start, -1):
                if (token_id := self._ids.get(data[start:end])) is not None:
                    token_ids.append(token_id)
                    start = end
                    break
            else:  # no token for this byte: what is there is a valid beginning
                break
        return token_ids
