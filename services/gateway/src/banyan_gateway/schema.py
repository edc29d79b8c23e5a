"""The JSON bodies, as strict types: an unknown field or a wrong value is refused with its name.

These types are the one place of truth: they check what arrives, and the OpenAPI page is made from
them. `null` means absent everywhere. Fields of OpenAI's API fall in three groups: those that work,
those that are accepted without effect (`WithoutEffect`; a response header names them), and those
whose effect a client would miss (`NotYet`), which are refused unless their value changes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from banyan_gateway.errors import ApiError
from banyan_gateway.messages import Messages
from banyan_gateway.response_format import ResponseFormat, StructuredOutputs
from banyan_gateway.schema_errors import explain
from banyan_gateway.tool_schema import ToolChoice, Tools

PROMPTS_MAX = 64
PROMPT_LOGPROBS_MAX = 20
PRIORITY_MAX = 2**31 - 1
LOGIT_BIAS_MAX = 1024
LOGIT_BIAS_ABS_MAX = 100.0

Text = Annotated[str, Meta(min_length=1)]
TokenIds = list[Annotated[int, Meta(ge=0)]]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
BadWord = Annotated[str, Meta(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Meta(max_length=4)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[int, Meta(ge=1)]
# What msgspec's types cannot say of them, `validate` checks and the OpenAPI page shows.
LogitBias = Annotated[
    dict[str, Any],
    Meta(
        max_length=LOGIT_BIAS_MAX,
        extra_json_schema={
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {
                "type": "number",
                "minimum": -LOGIT_BIAS_ABS_MAX,
                "maximum": LOGIT_BIAS_ABS_MAX,
            },
        },
    ),
]
_TOKEN_IDS_SCHEMA = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
Prompts = Annotated[
    list[Text | int | TokenIds],
    Meta(
        min_length=1,
        extra_json_schema={
            "anyOf": [
                {"items": {"type": "string"}, "maxItems": PROMPTS_MAX},
                _TOKEN_IDS_SCHEMA,
                {"items": _TOKEN_IDS_SCHEMA, "maxItems": PROMPTS_MAX},
            ]
        },
    ),
]


class WithoutEffect(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Hints and bookkeeping: nothing in the answer would differ."""

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
    prediction: Any = None
    moderation: Any = None
    session_id: Any = None


class NotYet(WithoutEffect, kw_only=True):
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    logits_processors: Any = None
    return_token_ids: Any = None
    chat_template: Any = None
    echo: Any = None
    suffix: Any = None
    best_of: Any = None
    truncate_prompt_tokens: Any = None
    kv_transfer_params: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    spaces_between_special_tokens: Any = None


NOT_YET: Final = tuple(
    name for name in NotYet.__struct_fields__ if name not in WithoutEffect.__struct_fields__
)


@cache
def not_yet(kind: type[NotYet]) -> tuple[str, ...]:
    """What this kind of body does not take: a field to which it gives a type of its own it does."""
    return tuple(name for name in NOT_YET if name not in kind.__annotations__)


# Values with which a field of `NotYet` asks for nothing that is missing.
HARMLESS: Final[dict[str, Any]] = {
    "functions": [],
    "modalities": ["text"],
    "return_token_ids": False,
    "echo": False,
    "best_of": 1,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
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
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | StopStrings | None = None
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    bad_words: Annotated[list[BadWord], Meta(max_length=128)] | None = None
    allowed_token_ids: Annotated[TokenIds, Meta(min_length=1)] | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=PROMPT_LOGPROBS_MAX)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[TokenIds, Meta(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    priority: Annotated[int, Meta(ge=-PRIORITY_MAX - 1, le=PRIORITY_MAX)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


class ChatBody(GenerationBody, kw_only=True):
    messages: Messages
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionBody(GenerationBody, kw_only=True):
    prompt: Text | Prompts
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None


class TokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: TokenIds


B = TypeVar("B")


def decode(body: bytes, kind: type[B]) -> B:
    """The body as `kind`. Raises ApiError 400 that names the field, for any bytes at all."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise explain(str(error), kind) from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except msgspec.DecodeError as error:
        message = f"the body is not valid JSON: {error}"
        raise ApiError(400, message, code="invalid_json") from None
