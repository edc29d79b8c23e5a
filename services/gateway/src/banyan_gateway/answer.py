"""What one request's client still has to read: a bounded buffer of text between two worlds.

Workers push tokens in, at their pace; the HTTP half takes deltas out, at the client's. The
worker's stream is never held up by a client: one that does not read is cut off at the bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
        self._items: list[Delta | Usage] = []
        self._failure: RequestFailed | None = None
        self._new_future = asyncio.get_running_loop().create_future
        self._reader: asyncio.Future[None] | None = None
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

    def push(
        self,
        choice: int,
        tokens: tuple[OutputToken, ...],
        prompt_logprobs: tuple[OutputToken, ...] = (),
    ) -> None:
        if self._stopped[choice]:
            return
        text, released, stopped = self._texts[choice].push(tokens)
        if text or released or prompt_logprobs:
            self._put(Delta(choice, text, released, None, prompt_logprobs))
        if stopped:
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
        if isinstance(last, Usage):
            self._items.append(last)
        else:
            self._failure = last
        self._wake_reader()

    def _put(self, delta: Delta) -> None:
        self._items.append(delta)
        self._num_unread += len(delta.tokens)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[Delta | Usage]:
        """All that is there, waiting for something; the usage is the last of all.

        Raises the failure that ended the answer, once what came before it is taken.
        """
        while not self._items:
            if self._failure is not None:
                raise self._failure
            self._reader = self._new_future()
            await self._reader
        items, self._items = self._items, []
        self._num_unread = 0
        return items
