"""Prompts as token ids, however a client gives them: text, a template's text, or token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from banyan_gateway.errors import invalid
from banyan_gateway.schema import PROMPTS_MAX
from banyan_gateway.validate import check_token_ids, context_exceeded
from banyan_text.tokenizer import Tokenizer

_PIECE_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Prompts:
    """`param` is the field that they came in."""

    param: str
    token_ids: list[list[int]]


class PromptReader:
    """Every method raises ApiError only."""

    def __init__(self, tokenizer: Tokenizer, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._numbers = tuple(range(tokenizer.vocab_size))

    def rendered(self, text: str) -> Prompts:
        """A chat template's text, which spells out its special tokens."""
        return Prompts("messages", [self.encode("messages", text, add_special=False)])

    def plain(self, prompt: str | list[str | int | list[int]]) -> Prompts:
        return Prompts("prompt", self._plain(prompt))

    def _plain(self, prompt: str | list[str | int | list[int]]) -> list[list[int]]:
        if isinstance(prompt, str):
            return [self.encode("prompt", prompt, add_special=True)]
        token_ids = [each for each in prompt if isinstance(each, int)]
        if token_ids and len(token_ids) == len(prompt):
            return [self._checked_ids("prompt", token_ids)]
        if token_ids or len({type(each) for each in prompt}) > 1:
            raise invalid(
                "prompt", "expected only strings, only token ids, or only lists of token ids"
            )
        if len(prompt) > PROMPTS_MAX:
            raise invalid("prompt", f"expected 1 to {PROMPTS_MAX} prompts")
        return [self._one_of_many(f"prompt[{i}]", each) for i, each in enumerate(prompt)]

    def _one_of_many(self, param: str, prompt: str | int | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self.encode(param, prompt, add_special=True)
        return self._checked_ids(param, prompt if isinstance(prompt, list) else [prompt])

    def _checked_ids(self, param: str, token_ids: list[int]) -> list[int]:
        check_token_ids(param, token_ids, self._tokenizer.vocab_size)
        return token_ids

    def encode(self, param: str, text: str, add_special: bool) -> list[int]:
        num_tokens_min = len(text.encode()) // self._tokenizer.token_bytes_max
        if num_tokens_min > self._context_tokens:  # do not even tokenise megabytes
            raise context_exceeded(param, self._context_tokens, num_tokens_min, 1)
        return self._tokenizer.encode(text, add_special)

    def shared(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The same numbers as objects that all prompts share: 8 bytes a token, not 40.

        Piece by piece, since other threads get their turn only between calls like these.
        """
        number = self._numbers.__getitem__
        shared: list[int] = []
        for start in range(0, len(token_ids), _PIECE_TOKENS):
            shared.extend(map(number, token_ids[start : start + _PIECE_TOKENS]))
        return tuple(shared)
