"""Log probabilities in OpenAI's two formats: a list of entries (chat), parallel lists (plain)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from banyan_core.types import OutputToken
from banyan_gateway.prompt_view import EchoedPrompt
from banyan_text.tokenizer import Tokenizer

_FLOOR = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot say

Lists = dict[str, list[Any]]
"""Of a plain completion, by name; one entry per token."""


def chat_entries(tokenizer: Tokenizer, tokens: Sequence[OutputToken]) -> list[dict[str, object]]:
    """One entry per token: text, bytes, logprob, alternatives."""
    return [
        {
            **_entry(tokenizer, token.token_id, token.logprob),
            "top_logprobs": [_entry(tokenizer, *each) for each in token.top],
        }
        for token in tokens
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, object]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(data),
    }


def prompt_entries(
    tokenizer: Tokenizer, tokens: Sequence[OutputToken], num_top: int
) -> list[dict[str, object] | None]:
    """As vLLM has them: per token of the prompt, id to logprob; nothing precedes the first."""
    return [None, *(_by_id(tokenizer, token, token.top[:num_top]) for token in tokens)]


def _by_id(
    tokenizer: Tokenizer, token: OutputToken, top: Sequence[tuple[int, float]]
) -> dict[str, object]:
    """The token itself and the most likely ones; of a token that is not among these no rank."""
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(top, 1)}
    return {
        str(token_id): {
            "logprob": _finite(logprob),
            "rank": ranks.get(token_id),
            "decoded_token": tokenizer.token_bytes(token_id).decode("utf-8", "replace"),
        }
        for token_id, logprob in ((token.token_id, token.logprob), *top)
    }


class PlainLogprobs:
    """The lists of one choice of a plain completion; keeps where the next token's text begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = tokenizer.decode_stream()
        self._offset = 0

    def of_prompt(self, prompt: EchoedPrompt, found: Sequence[OutputToken], num_top: int) -> Lists:
        """Of an echoed prompt, before its output; nothing says how likely its first token is.

        Offsets count in the text as it is echoed, so they end there also where a tokenizer does
        not give back the text that it was given.
        """
        stream, starts, position = self._tokenizer.decode_stream(prompt.shown), [], 0
        for token_id in prompt.token_ids:
            starts.append(min(position, len(prompt.text)))
            position += len(stream.push(token_id))
        self._offset = len(prompt.text)
        likely = [self._top(token, num_top) for token in found]
        return {
            "tokens": [self._text(token_id) for token_id in prompt.token_ids],
            "token_logprobs": [None, *(_finite(token.logprob) for token in found)],
            "top_logprobs": [None, *likely],
            "text_offset": list(starts),
        }

    def lists(self, tokens: Sequence[OutputToken]) -> Lists:
        """Of these tokens, which follow those of the call before."""
        return {
            "tokens": [self._text(token.token_id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token, len(token.top)) for token in tokens],
            "text_offset": [self._next_offset(token.token_id) for token in tokens],
        }

    def _top(self, token: OutputToken, num_top: int) -> dict[str, float]:
        return {self._text(token_id): _finite(logprob) for token_id, logprob in token.top[:num_top]}

    def _next_offset(self, token_id: int) -> int:
        offset = self._offset
        self._offset += len(self._stream.push(token_id))
        return offset

    def _text(self, token_id: int) -> str:
        """Half characters as `bytes:\\xe2`, so that no two of them fall together."""
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float:
    return _FLOOR if logprob is None else max(logprob, _FLOOR)
