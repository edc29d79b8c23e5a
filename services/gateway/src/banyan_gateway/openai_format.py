"""Answers as OpenAI's JSON: whole objects, and chunks of a stream.

What is equal in all chunks of an answer is encoded once; per delta only the choice is. A formatter
serves one answer and numbers choices over all its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from banyan_core.types import OutputToken
from banyan_gateway.logprobs import Lists, PlainLogprobs, prompt_entries
from banyan_gateway.ports import Delta, Usage
from banyan_gateway.prompt_view import PromptView
from banyan_text.tokenizer import Tokenizer

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every object of one answer carries."""

    answer_id: str
    created_unix_s: int
    model: str
    fingerprint: str

    def json(self, kind: str) -> bytes:
        """The opening of an object, up to and including `"choices":`."""
        head = {
            "id": self.answer_id,
            "object": kind,
            "created": self.created_unix_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }
        return encode(head)[:-1] + b',"choices":'


class TextChunks:
    """Chunks of one choice that carry text and nothing else: only the text is still encoded.

    `choice` is what such a chunk says of the choice, with `TEXT` where its text goes.
    """

    TEXT = "\0text\0"

    def __init__(self, head: bytes, choice: dict[str, object], tail: bytes) -> None:
        before, _, after = encode([choice]).partition(encode(self.TEXT))
        self._before, self._after = head + before, after + tail

    def of(self, text: str) -> bytes:
        return self._before + encode(text) + self._after


@dataclass(slots=True)
class CollectedChoice:
    """All news of one choice, for an answer that is not streamed."""

    text: list[str] = field(default_factory=list)
    tokens: list[OutputToken] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: Sequence[OutputToken] = ()

    def add(self, delta: Delta) -> None:
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        self.text.append(delta.text)
        self.tokens.extend(delta.tokens)
        self.finish_reason = delta.finish_reason or self.finish_reason

    def delta(self, index: int) -> Delta:
        """All of it as one."""
        text, tokens = "".join(self.text), tuple(self.tokens)
        return Delta(index, text, tokens, self.finish_reason, tuple(self.prompt_logprobs))


class Formatter(Protocol):
    def chunks(self, index: int, delta: Delta, usage: Usage | None) -> list[bytes]:
        """JSON objects for a delta of choice `index`; `usage` if every chunk is to carry it."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """The last object of a stream: usage, and no choices."""
        ...

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage) -> bytes:
        """The one object of an answer that is not streamed."""
        ...


class CompletionFormatter:
    """`num_logprobs`: alternatives for each token, None without logprobs."""

    def __init__(
        self,
        head: AnswerHead,
        tokenizer: Tokenizer,
        num_logprobs: int | None,
        usage_in_chunks: bool,
        view: PromptView | None = None,
    ) -> None:
        self._head = head.json("text_completion")
        self._tokenizer = tokenizer
        self._num_logprobs = num_logprobs
        self._view = view
        self._unopened = set(range(view.num_choices)) if view else set()
        self._null_usage = b',"usage":null}' if usage_in_chunks else b"}"
        self._lists: dict[int, PlainLogprobs] = {}
        self._text_chunks: dict[int, TextChunks] = {}

    def chunks(self, index: int, delta: Delta, usage: Usage | None) -> list[bytes]:
        is_text = self._num_logprobs is None and index not in self._unopened
        if delta.text and is_text and not (delta.finish_reason or usage):
            return [self._chunks_of(index).of(delta.text)]
        opens = index in self._unopened
        if self._view is not None:
            delta = self._view.said(delta)
        choice = self._choice(index, delta)
        if not (choice["text"] or delta.finish_reason or choice["logprobs"] or opens):
            return []
        return [self._head + encode([choice]) + (self._tail(usage) if usage else self._null_usage)]

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._head + b"[]" + self._tail(usage)

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage) -> bytes:
        deltas = [each.delta(index) for index, each in enumerate(choices)]
        if self._view is not None:
            deltas = [self._view.said(delta) for delta in deltas]
        objects = [self._choice(delta.choice, delta) for delta in deltas]
        return self._head + encode(objects) + self._tail(usage)

    def _tail(self, usage: Usage) -> bytes:
        return tail(self._view.counted(usage) if self._view else usage)

    def _chunks_of(self, index: int) -> TextChunks:
        chunks = self._text_chunks.get(index)
        if chunks is None:
            choice = self._choice(index, Delta(index, TextChunks.TEXT, ()))
            chunks = TextChunks(self._head, choice, self._null_usage)
            self._text_chunks[index] = chunks
        return chunks

    def _choice(self, index: int, delta: Delta) -> dict[str, object]:
        view = self._view
        if view is None or index not in self._unopened:
            lists = self._lists_of(index, delta.tokens)
            return _choice_of(index, delta.text, lists, delta.finish_reason)
        self._unopened.discard(index)
        return self._opening(view, index, delta)

    def _opening(self, view: PromptView, index: int, delta: Delta) -> dict[str, object]:
        """What is new of a choice of which nothing was said, and what it says of its prompt."""
        text, prompt, found = delta.text, view.of(index), delta.prompt_logprobs
        of_prompt = None
        if prompt is not None:
            text = prompt.text + text
            if self._num_logprobs is not None:
                lists = self._logprobs_of(index)
                of_prompt = lists.of_prompt(prompt, found, self._num_logprobs)
        of_output = self._lists_of(index, delta.tokens)
        if of_prompt is not None and of_output is not None:
            of_output = {name: of_prompt[name] + of_output[name] for name in of_output}
        choice = _choice_of(index, text, of_output or of_prompt, delta.finish_reason)
        if view.num_logprobs is not None:
            choice["prompt_logprobs"] = prompt_entries(self._tokenizer, found, view.num_logprobs)
        return choice

    def _lists_of(self, index: int, tokens: Sequence[OutputToken]) -> Lists | None:
        if self._num_logprobs is None or not tokens:
            return None
        return self._logprobs_of(index).lists(tokens)

    def _logprobs_of(self, index: int) -> PlainLogprobs:
        return self._lists.setdefault(index, PlainLogprobs(self._tokenizer))


def _choice_of(
    index: int, text: str, logprobs: Lists | None, finish_reason: str | None
) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def usage_json(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def tail(usage: Usage) -> bytes:
    return b',"usage":' + encode(usage_json(usage)) + b"}"
