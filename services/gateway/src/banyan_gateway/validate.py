"""Field values: ranges as OpenAI has them, each refusal naming the field and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from banyan_core.types import SamplingParams
from banyan_gateway.errors import ApiError, invalid
from banyan_gateway.schema import (
    HARMLESS,
    ChatBody,
    ContentPart,
    GenerationBody,
    Message,
    NotYet,
    WithoutEffect,
)

N_MAX = 16
STOPS_MAX = 4
STOP_CHARS_MAX = 256
STOP_TOKEN_IDS_MAX = 128
LOGIT_BIAS_MAX = 1024
CACHE_SALT_CHARS_MAX = 1024
LOGIT_BIAS_KEY_CHARS_MAX = 40
TOP_LOGPROBS_MAX = 20
COMPLETION_LOGPROBS_MAX = 5

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NOT_YET_FIELDS = tuple(
    name for name in NotYet.__struct_fields__ if name not in WithoutEffect.__struct_fields__
)
_EMPTY_LISTS = ("tools", "functions")  # some clients always send them, empty
_MESSAGE_NOT_YET = ("audio", "tool_calls", "tool_call_id", "function_call", "reasoning_content")

Number = TypeVar("Number", int, float)


def ignored_fields(body: GenerationBody) -> tuple[str, ...]:
    """Fields that were given, are known, and have no effect."""
    known = (*WithoutEffect.__struct_fields__, *_EMPTY_LISTS)
    given = [name for name in known if getattr(body, name) is not None]
    options = body.stream_options
    if options is not None and options.include_obfuscation is not None:
        given.append("stream_options.include_obfuscation")
    return tuple(given)


def refuse_not_yet(body: GenerationBody) -> None:
    """Raises for a field whose effect the client would miss."""
    for name in _NOT_YET_FIELDS:
        value = getattr(body, name)
        if value is not None and (name not in HARMLESS or value != HARMLESS[name]):
            raise invalid(name, "is not supported yet", "unsupported_parameter")


def stream_options(body: GenerationBody) -> tuple[bool, bool]:
    """Whether a usage chunk is wanted, and whether every chunk carries usage."""
    options = body.stream_options
    if options is None:
        return False, False
    if not body.stream:
        raise invalid("stream_options", "is only allowed with stream: true")
    continuous = bool(options.continuous_usage_stats)
    if continuous and not options.include_usage:
        raise invalid("stream_options.continuous_usage_stats", "needs include_usage: true")
    return bool(options.include_usage), continuous


def num_choices(body: GenerationBody) -> int:
    return _within("n", body.n, 1, N_MAX, 1)


def stop_strings(body: GenerationBody) -> tuple[str, ...]:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > STOPS_MAX:
        raise invalid("stop", f"expected at most {STOPS_MAX} strings, got {len(stops)}")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= STOP_CHARS_MAX:
            raise invalid(f"stop[{index}]", f"expected 1 to {STOP_CHARS_MAX} characters")
    return tuple(stops)


def cache_salt(body: GenerationBody) -> str:
    if body.cache_salt is None:
        return ""
    if not 1 <= len(body.cache_salt) <= CACHE_SALT_CHARS_MAX:
        raise invalid("cache_salt", f"expected 1 to {CACHE_SALT_CHARS_MAX} characters")
    return body.cache_salt


def priority(body: GenerationBody) -> int:
    return _within("priority", body.priority, -(2**31), 2**31 - 1, 0)


def wanted_max_tokens(body: GenerationBody) -> tuple[str, int | None]:
    """The field that bounds the output, and its value if the client set it."""
    name, value = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if value is not None and value != body.max_completion_tokens:
            raise invalid("max_tokens", "differs from max_completion_tokens: give one of them")
        name, value = "max_completion_tokens", body.max_completion_tokens
    if value is not None and value < 1:
        raise invalid(name, f"expected at least 1, got {value}")
    return name, value


def sampling(body: GenerationBody, drawn_seed: int, vocab_size: int) -> SamplingParams:
    """All but `max_tokens` and logprobs, which other functions here give."""
    seed = _within("seed", body.seed, -(2**63), 2**63 - 1, drawn_seed)
    return SamplingParams(
        temperature=_within("temperature", body.temperature, 0.0, 2.0, 1.0),
        top_p=_above_zero("top_p", body.top_p, 1.0, 1.0),
        top_k=max(0, _within("top_k", body.top_k, -1, 2**31 - 1, 0)),
        min_p=_within("min_p", body.min_p, 0.0, 1.0, 0.0),
        presence_penalty=_within("presence_penalty", body.presence_penalty, -2.0, 2.0, 0.0),
        frequency_penalty=_within("frequency_penalty", body.frequency_penalty, -2.0, 2.0, 0.0),
        repetition_penalty=_above_zero("repetition_penalty", body.repetition_penalty, 10.0, 1.0),
        logit_bias=_logit_bias(body.logit_bias or {}, vocab_size),
        seed=seed % 2**64,
        min_tokens=_within("min_tokens", body.min_tokens, 0, 2**31 - 1, 0),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=_stop_token_ids(body.stop_token_ids or [], vocab_size),
    )


def chat_logprobs(body: ChatBody) -> tuple[bool, int]:
    """Whether logprobs are wanted, and how many alternatives per token."""
    num_top = _within("top_logprobs", body.top_logprobs, 0, TOP_LOGPROBS_MAX, 0)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs: true")
    return bool(body.logprobs), num_top


def completion_logprobs(logprobs: int | None) -> tuple[bool, int]:
    """As `chat_logprobs`, from the one number that plain completions take."""
    return logprobs is not None, _within("logprobs", logprobs, 0, COMPLETION_LOGPROBS_MAX, 0)


def chat_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Role, text and name of each message, as chat templates take them."""
    if not messages:
        raise invalid("messages", "expected at least one message")
    return [_message(f"messages[{index}]", each) for index, each in enumerate(messages)]


def check_token_ids(param: str, token_ids: Sequence[int], vocab_size: int) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise invalid(f"{param}[{index}]", f"expected a token id from 0 to {vocab_size - 1}")


def _message(param: str, message: Message) -> dict[str, str]:
    role = _ROLES.get(message.role)
    if role is None:
        expected = "expected one of " + ", ".join(_ROLES)
        raise invalid(f"{param}.role", f"{expected}; other roles are not supported yet")
    for name in _MESSAGE_NOT_YET:
        if getattr(message, name) is not None:
            raise invalid(f"{param}.{name}", "is not supported yet", "unsupported_parameter")
    if message.content is None:
        raise invalid(f"{param}.content", "is required")
    plain = {"role": role, "content": _content(f"{param}.content", message.content)}
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _content(param: str, content: str | list[ContentPart]) -> str:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part.type != "text":
            message = "only parts of type 'text' are supported yet"
            raise invalid(f"{param}[{index}].type", message, "unsupported_parameter")
        if part.text is None:
            raise invalid(f"{param}[{index}].text", "is required")
    return "\n".join(part.text or "" for part in content)


def _logit_bias(biases: dict[str, Any], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(biases) > LOGIT_BIAS_MAX:
        raise invalid("logit_bias", f"expected at most {LOGIT_BIAS_MAX} entries")
    checked = {}
    for key, bias in biases.items():
        param = f"logit_bias.{key[:LOGIT_BIAS_KEY_CHARS_MAX]}"
        known = key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < vocab_size
        if not known:
            raise invalid(param, f"expected a key that is a token id from 0 to {vocab_size - 1}")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise invalid(param, "expected a number")
        checked[int(key)] = float(_within(param, bias, -100.0, 100.0, 0.0))
    return tuple(sorted(checked.items()))


def _stop_token_ids(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    if len(token_ids) > STOP_TOKEN_IDS_MAX:
        raise invalid("stop_token_ids", f"expected at most {STOP_TOKEN_IDS_MAX} token ids")
    check_token_ids("stop_token_ids", token_ids, vocab_size)
    return tuple(token_ids)


def _within(param: str, value: Number | None, low: Number, high: Number, default: Number) -> Number:
    if value is None:
        return default
    if not low <= value <= high:
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise invalid(param, f"expected {kind} from {low} to {high}, got {_short(value)}")
    return value


def _above_zero(param: str, value: float | None, high: float, default: float) -> float:
    if value is None:
        return default
    if not 0.0 < value <= high:
        raise invalid(param, f"expected a number above 0 and up to {high}, got {_short(value)}")
    return value


def _short(value: float) -> str:
    """A number for a message; a client may send one of thousands of digits."""
    if isinstance(value, int) and abs(value) > 2**63:
        return "a much larger one" if value > 0 else "a much smaller one"
    return str(value)


def context_exceeded(
    param: str, context_tokens: int, num_prompt_tokens: int, max_tokens: int
) -> ApiError:
    """400 with OpenAI's code: clients look for it to shorten what they send."""
    message = (
        f"this model's context is {context_tokens} tokens, but the prompt has {num_prompt_tokens} "
        f"and {_short(max_tokens)} are asked for: shorten the prompt or lower max_tokens"
    )
    return ApiError(400, message, param, "context_length_exceeded")
