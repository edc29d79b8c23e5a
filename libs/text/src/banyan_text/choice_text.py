"""One choice's way from tokens to sendable text: detokenise, match stop strings, pair logprobs.

Text can be held back twice: within a character, and while it may begin a stop string. Tokens wait
for their text, so that what is sent as logprobs never runs ahead of what is sent as text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from banyan_core.types import OutputToken
from banyan_text.stops import StopMatcher
from banyan_text.tokenizer import Tokenizer


class TextPiece(NamedTuple):
    """Text that may be sent now, the tokens it releases, and whether a stop string ended it."""

    text: str
    tokens: tuple[OutputToken, ...]
    stopped: bool


class _Waiting(NamedTuple):
    """A token whose text, characters `start` to `end` of the choice, is not all sent yet."""

    token: OutputToken
    start: int
    end: int


class ChoiceText:
    """The text of one choice.

    A token is released as soon as all its text is sent. When a stop string cuts the text, tokens
    that begin before the cut are released too; later ones never are. Tokens in `silent_ids` (stop
    tokens) add no text unless `include` is set; special tokens add none unless they are `shown`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        include: bool = False,
        silent_ids: Collection[int] = (),
        shown: Collection[str] = (),
    ) -> None:
        self._detokenizer = tokenizer.decode_stream(shown)
        self._matcher = StopMatcher(stops, include)
        self._has_stops = bool(stops)
        self._silent_ids = () if include else tuple(silent_ids)
        self._waiting: deque[_Waiting] = deque()
        self._num_final_chars = 0
        self._num_sent_chars = 0
        self.num_output_tokens = 0

    def push(self, tokens: Sequence[OutputToken]) -> TextPiece:
        """Take the next tokens in order.

        Once `stopped`, the choice is over: the rest of these tokens, and later ones, are neither
        sent nor counted. `num_output_tokens` counts the token that completed the stop string.
        """
        if not self._has_stops and not self._waiting and len(tokens) == 1:
            return self._push_plain(tokens)
        text = ""
        for token in tokens:
            if self._matcher.matched is not None:
                break
            text += self._take(token, self._detokenize(token))
        return self._piece(text)

    def _push_plain(self, tokens: Sequence[OutputToken]) -> TextPiece:
        """One token, the common case, without its books: nothing is held back."""
        token = tokens[0]
        text = self._detokenize(token)
        if self._detokenizer.has_partial:
            return self._piece(self._take(token, text))
        self.num_output_tokens += 1
        self._num_final_chars += len(text)
        self._num_sent_chars += len(text)
        return TextPiece(text, tuple(tokens), False)

    def finish(self) -> TextPiece:
        """The choice ended without a stop string: give all that was held back."""
        text = ""
        if self._matcher.matched is None:
            rest = self._detokenizer.finish()
            self._num_final_chars += len(rest)
            text = self._matcher.push(rest) + self._matcher.finish()
        piece = self._piece(text)
        left = () if piece.stopped else tuple(waiting.token for waiting in self._waiting)
        self._waiting.clear()
        return piece._replace(tokens=piece.tokens + left)

    def _detokenize(self, token: OutputToken) -> str:
        if token.token_id in self._silent_ids:
            return ""
        return self._detokenizer.push(token.token_id)

    def _take(self, token: OutputToken, text: str) -> str:
        self.num_output_tokens += 1
        start = self._num_final_chars
        self._num_final_chars += len(text)
        # A character whose first bytes are here counts as this token's, though it is not final.
        silent = token.token_id in self._silent_ids
        partial = not silent and self._detokenizer.has_partial
        self._waiting.append(_Waiting(token, start, self._num_final_chars + partial))
        return self._matcher.push(text)

    def _piece(self, text: str) -> TextPiece:
        self._num_sent_chars += len(text)
        stopped = self._matcher.matched is not None
        released: list[OutputToken] = []
        while self._waiting and self._is_released(self._waiting[0], stopped):
            released.append(self._waiting.popleft().token)
        if stopped:
            self._waiting.clear()
        return TextPiece(text, tuple(released), stopped)

    def _is_released(self, waiting: _Waiting, stopped: bool) -> bool:
        if waiting.end <= self._num_sent_chars:
            return True
        return stopped and waiting.start < self._num_sent_chars
