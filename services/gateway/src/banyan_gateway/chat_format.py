"""Chat answers as OpenAI's JSON: content, reasoning and tool calls of each choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from banyan_core.types import OutputToken
from banyan_gateway.choice_parts import PLAIN, ChoiceParts, Part, PartFormats, Reasoning
from banyan_gateway.logprobs import chat_entries, prompt_entries
from banyan_gateway.openai_format import AnswerHead, CollectedChoice, TextChunks, encode, tail
from banyan_gateway.openai_format import usage_json as _usage_json
from banyan_gateway.ports import Delta, Usage
from banyan_gateway.schema import PROMPT_LOGPROBS_MAX
from banyan_text.tokenizer import Tokenizer
from banyan_text.tools import CallArguments, CallBegin, Content

CALL_ID_CHARS = 9
"""And letters or digits only: Mistral's templates refuse other ids when they come back."""


@dataclass(slots=True)
class _Begun:
    """A choice of which something was sent. `text_chunks` serve what carries text alone."""

    text_chunks: TextChunks
    parts: ChoiceParts


@dataclass(slots=True)
class _Message:
    """The parts of one choice, put together."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Names and arguments."""

    def add(self, part: Part) -> None:
        match part:
            case Reasoning(text):
                self.reasoning += text
            case Content(text):
                self.content += text
            case CallBegin(_, name):
                self.calls.append([name, ""])
            case CallArguments(index, text):
                self.calls[index][1] += text


class ChatFormatter:
    """See `openai_format.Formatter`. `formats` say how the text of a choice is taken apart."""

    def __init__(
        self,
        head: AnswerHead,
        tokenizer: Tokenizer,
        logprobs: bool,
        usage_in_chunks: bool,
        formats: PartFormats = PLAIN,
    ) -> None:
        self._answer_id = head.answer_id
        self._whole_head = head.json("chat.completion")
        self._chunk_head = head.json("chat.completion.chunk")
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._formats = formats
        self._is_plain = formats.is_plain
        self._null_usage = b',"usage":null}' if usage_in_chunks else b"}"
        self._begun: dict[int, _Begun] = {}

    def chunks(self, index: int, delta: Delta, usage: Usage | None) -> list[bytes]:
        begun = self._begun.get(index)
        is_text = self._is_plain and delta.text and not (delta.finish_reason or usage)
        if begun and is_text and not self._logprobs:
            return [begun.text_chunks.of(delta.text)]
        chunks = []
        if begun is None:
            begun = self._begun[index] = self._begin(index)
            role: dict[str, object] = {"role": "assistant", "content": ""}
            first = self._chunk(index, role, None, None, usage)
            if index == 0 and delta.prompt_logprobs:  # the choices have one prompt
                first = first[:-1] + self._of_prompt(delta.prompt_logprobs) + b"}"
            chunks.append(first)
        deltas = self._deltas(index, begun.parts, delta)
        entries = self._entries(delta.tokens)
        if not deltas and (entries or delta.finish_reason):
            deltas.append({})
        for place, each in enumerate(deltas):
            is_last = place == len(deltas) - 1
            reason = _reason(delta.finish_reason, begun.parts) if is_last else None
            chunks.append(self._chunk(index, each, None if place else entries, reason, usage))
        return chunks

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._chunk_head + b'[],"usage":' + encode(_usage_json(usage)) + b"}"

    def whole(self, choices: Sequence[CollectedChoice], usage: Usage) -> bytes:
        objects = [self._whole_choice(index, each) for index, each in enumerate(choices)]
        found = choices[0].prompt_logprobs  # the choices have one prompt
        if not found:
            return self._whole_head + encode(objects) + tail(usage)
        return self._whole_head + encode(objects) + self._of_prompt(found) + tail(usage)

    def _of_prompt(self, found: Sequence[OutputToken]) -> bytes:
        entries = prompt_entries(self._tokenizer, found, PROMPT_LOGPROBS_MAX)
        return b',"prompt_logprobs":' + encode(entries)

    def _begin(self, index: int) -> _Begun:
        choice = _chat_choice(index, {"content": TextChunks.TEXT}, None, None)
        chunks = TextChunks(self._chunk_head, choice, self._null_usage)
        return _Begun(chunks, ChoiceParts(self._formats))

    def _deltas(self, index: int, parts: ChoiceParts, delta: Delta) -> list[dict[str, object]]:
        found = parts.push(delta.text) if delta.text else []
        if delta.finish_reason:
            found += parts.finish()
        deltas = [self._delta(index, each) for each in found]
        if deltas and delta.finish_reason and parts.num_calls:
            deltas.append({})  # as OpenAI does: behind a call the reason comes alone
        return deltas

    def _delta(self, index: int, part: Part) -> dict[str, object]:
        match part:
            case Reasoning(text):
                return {"reasoning_content": text}
            case Content(text):
                return {"content": text}
            case CallBegin(call, name):
                function = {"name": name, "arguments": ""}
                call_id = self._call_id(index, call)
                begin = {"index": call, "id": call_id, "type": "function", "function": function}
                return {"tool_calls": [begin]}
            case CallArguments(call, text):
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}

    def _whole_choice(self, index: int, choice: CollectedChoice) -> dict[str, object]:
        parts, message = ChoiceParts(self._formats), _Message()
        for part in [*parts.push("".join(choice.text)), *parts.finish()]:
            message.add(part)
        return {
            "index": index,
            "message": self._message(index, message),
            "logprobs": self._entries(choice.tokens),
            "finish_reason": _reason(choice.finish_reason, parts),
        }

    def _message(self, index: int, message: _Message) -> dict[str, object]:
        content = None if message.calls and not message.content else message.content
        described: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
        if message.reasoning:
            described["reasoning_content"] = message.reasoning
        if message.calls:
            described["tool_calls"] = [
                {
                    "id": self._call_id(index, call),
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for call, (name, arguments) in enumerate(message.calls)
            ]
        return described

    def _call_id(self, index: int, call: int) -> str:
        name = f"{self._answer_id}/{index}/{call}"
        return hashlib.sha256(name.encode()).hexdigest()[:CALL_ID_CHARS]

    def _entries(self, tokens: Sequence[OutputToken]) -> dict[str, object] | None:
        if not self._logprobs or not tokens:
            return None
        return {"content": chat_entries(self._tokenizer, tokens), "refusal": None}

    def _chunk(
        self,
        index: int,
        delta: dict[str, object],
        logprobs: dict[str, object] | None,
        finish_reason: str | None,
        usage: Usage | None,
    ) -> bytes:
        choice = _chat_choice(index, delta, logprobs, finish_reason)
        return self._chunk_head + encode([choice]) + (tail(usage) if usage else self._null_usage)


def _reason(finish_reason: str | None, parts: ChoiceParts) -> str | None:
    return "tool_calls" if finish_reason == "stop" and parts.num_calls else finish_reason


def _chat_choice(
    index: int,
    delta: dict[str, object],
    logprobs: dict[str, object] | None,
    finish_reason: str | None,
) -> dict[str, object]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
