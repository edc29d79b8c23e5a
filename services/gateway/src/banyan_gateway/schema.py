"""The JSON bodies, as strict types: an unknown field or a wrong type is refused with its name.

`null` means absent everywhere. Fields of OpenAI's API fall in three groups: those that work, those
that are accepted without effect (`WithoutEffect`; a response header names them), and those whose
effect a client would miss (`NotYet`), which are refused unless their value changes nothing.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from banyan_gateway.errors import ApiError, invalid


class WithoutEffect(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    verbosity: Any = None
    reasoning_effort: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    moderation: Any = None


class NotYet(WithoutEffect, kw_only=True):
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    logits_processors: Any = None
    structured_outputs: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    skip_special_tokens: Any = None
    return_token_ids: Any = None
    chat_template: Any = None
    chat_template_kwargs: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    echo: Any = None
    suffix: Any = None
    best_of: Any = None


# Values with which a field of `NotYet` asks for nothing that is missing.
HARMLESS: Final[dict[str, Any]] = {
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "skip_special_tokens": True,
    "return_token_ids": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "echo": False,
    "best_of": 1,
}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(NotYet, kw_only=True):
    """What chat and plain completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None


class ContentPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    reasoning_content: Any = None


class ChatBody(GenerationBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionBody(GenerationBody, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: list[int]


B = TypeVar("B")

_PATH = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_TYPE_NAMES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_MAX_NAME_CHARS = 100


def decode(body: bytes, kind: type[B]) -> B:
    """The body as `kind`. Raises ApiError 400 that names the field, for any bytes at all."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except msgspec.DecodeError as error:
        message = f"the body is not valid JSON: {error}"
        raise ApiError(400, message, code="invalid_json") from None


def _explain(text: str) -> ApiError:
    match = _PATH.fullmatch(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    for pattern, verdict in ((_UNKNOWN, "unknown field"), (_MISSING, "is required")):
        name = pattern.fullmatch(what)
        if name:
            param = f"{path}.{name[1][:_MAX_NAME_CHARS]}" if path else name[1][:_MAX_NAME_CHARS]
            return invalid(param, verdict)
    expected = re.sub(r"`([^`]*)`", lambda found: _words(found[1]), what)
    return invalid(path or "body", expected[:1].lower() + expected[1:])


def _words(types: str) -> str:
    names = [name for name in types.split(" | ") if name != "null" or types == "null"]
    return " or ".join(_TYPE_NAMES.get(name, name) for name in names)
