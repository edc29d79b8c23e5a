"""What one request's client still has to read: a bounded buffer of text between two worlds.

Workers push tokens in, at their pace; the HTTP half takes deltas out, at the client's. The
worker's stream is never held up by a client: one that does not read is cut off at the bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from banyan_core.types import OutputToken
from banyan_gateway.ports import Delta, RequestFailed, Usage
from banyan_text.choice_text import ChoiceText

MAX_UNREAD_TOKENS = 4096


class Answer:
    """One request's way out. `on_stop(choice, num_tokens)` is told of a stop string."""

    def __init__(self, texts: list[ChoiceText], on_stop: Callable[[int, int], None]) -> None:
        self._texts = texts
        self._on_stop = on_stop
        self._closed_choices = [False] * len(texts)
        self._stopped = [False] * len(texts)
        self._items: deque[Delta | Usage | RequestFailed] = deque()
        self._news = asyncio.Event()
        self._num_unread = 0
        self.ended = False

    @property
    def overflowed(self) -> bool:
        """The client has left more tokens unread than the bound allows."""
        return self._num_unread > MAX_UNREAD_TOKENS

    @property
    def num_output_tokens(self) -> int:
        """Counted up to and including the token that completed a stop string."""
        return sum(text.num_output_tokens for text in self._texts)

    def push(self, choice: int, tokens: tuple[OutputToken, ...]) -> None:
        if self._stopped[choice]:
            return
        piece = self._texts[choice].push(tokens)
        if piece.text or piece.tokens:
            self._put(Delta(choice, piece.text, piece.tokens))
        if piece.stopped:
            self._stopped[choice] = True
            self._on_stop(choice, self._texts[choice].num_output_tokens)

    def end_choice(self, choice: int, finish_reason: str) -> None:
        """The last delta: text that was held back, and why the choice ended."""
        if self._closed_choices[choice]:
            return
        self._closed_choices[choice] = True
        piece = self._texts[choice].finish()
        reason = "stop" if self._stopped[choice] else finish_reason
        self._put(Delta(choice, piece.text, piece.tokens, reason))

    def end(self, last: Usage | RequestFailed) -> None:
        self.ended = True
        self._put(last)

    def _put(self, item: Delta | Usage | RequestFailed) -> None:
        self._items.append(item)
        self._num_unread += len(item.tokens) if isinstance(item, Delta) else 0
        self._news.set()

    async def items(self) -> AsyncGenerator[Delta | Usage, None]:
        """Deltas as they come, then the usage. Raises the failure that ended it instead."""
        while True:
            while self._items:
                item = self._items.popleft()
                if isinstance(item, RequestFailed):
                    raise item
                self._num_unread -= len(item.tokens) if isinstance(item, Delta) else 0
                yield item
                if isinstance(item, Usage):
                    return
            self._news.clear()
            await self._news.wait()
