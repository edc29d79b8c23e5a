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
from banyan_gateway.logprobs import PlainLogprobs, prompt_entries
from banyan_gateway.ports import Delta, Usage
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
    def __init__(
        self, head: AnswerHead, tokenizer: Tokenizer, logprobs: bool, usage_in_chunks: bool
    ) -> None:
        self._head = head.json("text_completion")
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._null_usage = b',"usage":null}' if usage_in_chunks else b"}"
        self._lists: dict[int, PlainLogprobs] = {}
        self._text_chunks: dict[int, TextChunks] = {}

    def chunks(self, index: int, delta: Delta, usage: Usage | None) -> list[bytes]:
        if delta.text and not (self._logprobs or delta.finish_reason or usage):
            return [self._chunks_of(index).of(delta.text)]
        choice = self._choice(index, delta.text, delta.tokens, delta.finish_reason)
        if not delta.text and not delta.finish_reason and choice["logprobs"] is None:
            return []
        return [self._head + encode([choice]) + (tail(usage) if usage else self._null_usage)]

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._head + b'[],"usage":' + encode(usage_json(usage)) + b"}"

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage) -> bytes:
        objects = [self._whole_choice(index, each) for index, each in enumerate(choices)]
        return self._head + encode(objects) + tail(usage)

    def _chunks_of(self, index: int) -> TextChunks:
        chunks = self._text_chunks.get(index)
        if chunks is None:
            choice = self._choice(index, TextChunks.TEXT, (), None)
            chunks = TextChunks(self._head, choice, self._null_usage)
            self._text_chunks[index] = chunks
        return chunks

    def _whole_choice(self, index: int, choice: CollectedChoice) -> dict[str, object]:
        text = "".join(choice.text)
        described = self._choice(index, text, choice.tokens, choice.finish_reason)
        if choice.prompt_logprobs:
            described["prompt_logprobs"] = prompt_entries(self._tokenizer, choice.prompt_logprobs)
        return described

    def _choice(
        self, index: int, text: str, tokens: Sequence[OutputToken], finish_reason: str | None
    ) -> dict[str, object]:
        logprobs = None
        if self._logprobs and tokens:
            lists = self._lists.setdefault(index, PlainLogprobs(self._tokenizer))
            logprobs = lists.lists(tokens)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }


def usage_json(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_output_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def tail(usage: Usage) -> bytes:
    return b',"usage":' + encode(usage_json(usage)) + b"}"
