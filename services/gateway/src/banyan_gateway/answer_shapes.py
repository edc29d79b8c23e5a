"""The shape of answers, for the OpenAPI page; tests hold every real answer against it, strictly.

Streams are written token by token and therefore not by these types, see `openai_format`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class ErrorDetail(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    error: ErrorDetail


class PromptTokensDetails(Shape):
    cached_tokens: Count


class UsageCounts(Shape):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Shape):
    name: str
    arguments: str


class AnswerToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Shape):
    """`content` is null when there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerToolCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(Shape):
    index: Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class AnswerFields(Shape):
    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptLogprob(Shape):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatAnswer(AnswerFields):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageCounts
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class FunctionDelta(Shape):
    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ToolCallDelta(Shape):
    """The first of a call has its id, type and name; all have the next part of its arguments."""

    index: Count
    function: FunctionDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class MessageDelta(Shape):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(Shape):
    index: Count
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatChunk(AnswerFields):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: UsageCounts | msgspec.UnsetType | None = msgspec.UNSET
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class PlainLogprobs(Shape):
    """null is the first token of an echoed prompt: nothing says how likely it is."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Shape):
    index: Count
    text: str
    logprobs: PlainLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class CompletionAnswer(AnswerFields):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageCounts


class CompletionChunkChoice(Shape):
    index: Count
    text: str
    logprobs: PlainLogprobs | None
    finish_reason: FinishReason | None
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class CompletionChunk(AnswerFields):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: UsageCounts | msgspec.UnsetType | None = msgspec.UNSET


class Model(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: Count


class Models(Shape):
    object: Literal["list"]
    data: list[Model]


class Tokens(Shape):
    count: Count
    max_model_len: Count
    tokens: list[Count]
    token_strs: list[str] | None


class Text(Shape):
    prompt: str


class Readiness(Shape):
    ready: bool
    reason: str


class Version(Shape):
    version: str
