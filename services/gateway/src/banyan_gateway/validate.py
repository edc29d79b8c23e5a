"""What the schema's types cannot say: fields that depend on each other, and on the model.

Each refusal names the field and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from banyan_core.types import Grammar, SamplingParams
from banyan_gateway.errors import ApiError, invalid
from banyan_gateway.schema import (
    HARMLESS,
    LOGIT_BIAS_ABS_MAX,
    ChatBody,
    GenerationBody,
    WithoutEffect,
    not_yet,
)
from banyan_text.generation_defaults import GenerationDefaults
from banyan_text.tokenizer import Tokenizer

LOGIT_BIAS_KEY_CHARS_MAX = 40


def ignored_fields(body: GenerationBody) -> tuple[str, ...]:
    """Fields that were given, are known, and have no effect."""
    known = (*WithoutEffect.__struct_fields__, "functions")  # some clients always send it, empty
    given = [name for name in known if getattr(body, name) is not None]
    options = body.stream_options
    if options is not None and options.include_obfuscation is not None:
        given.append("stream_options.include_obfuscation")
    return tuple(given)


def refuse_not_yet(body: GenerationBody) -> None:
    """Raises for a field whose effect the client would miss."""
    for name in not_yet(type(body)):
        value = getattr(body, name)
        if value is not None and not _is_harmless(name, value):
            raise invalid(name, f"expected {_nothing_of(name)}", "unsupported_parameter")


def _nothing_of(name: str) -> str:
    instead = f" or {json.dumps(HARMLESS[name])}" if name in HARMLESS else ""
    return f"to be absent{instead}: it is not supported yet"


def _is_harmless(name: str, value: object) -> bool:
    harmless = HARMLESS.get(name)
    return type(value) is type(harmless) and value == harmless


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


def stop_strings(body: GenerationBody) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def wanted_max_tokens(body: GenerationBody) -> tuple[str, int | None]:
    """The field that bounds the output, and its value if the client set it."""
    name, value = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if value is not None and value != body.max_completion_tokens:
            raise invalid("max_tokens", "differs from max_completion_tokens: give one of them")
        name, value = "max_completion_tokens", body.max_completion_tokens
    return name, value


def sampling(
    body: GenerationBody,
    drawn_seed: int,
    tokenizer: Tokenizer,
    defaults: GenerationDefaults,
    *,
    max_tokens: int,
    logprobs: tuple[bool, int],
    num_prompt_logprobs: int | None,
    grammar: Grammar | None,
) -> SamplingParams:
    """What the body leaves open is as the model's authors recommend, else as OpenAI has it."""
    vocab_size = tokenizer.vocab_size
    seed = drawn_seed if body.seed is None else body.seed
    check_token_ids("stop_token_ids", body.stop_token_ids or (), vocab_size)
    check_token_ids("allowed_token_ids", body.allowed_token_ids or (), vocab_size)
    return SamplingParams(
        temperature=_given(body.temperature, defaults.temperature, 1.0),
        top_p=_given(body.top_p, defaults.top_p, 1.0),
        top_k=max(0, int(_given(body.top_k, defaults.top_k, 0))),
        min_p=_given(body.min_p, 0.0),
        typical_p=_given(body.typical_p, 1.0),
        bad_words=_bad_words(body.bad_words or (), tokenizer),
        allowed_token_ids=tuple(sorted(set(body.allowed_token_ids or ()))),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        repetition_penalty=_given(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias=_logit_bias(body.logit_bias or {}, vocab_size),
        seed=seed % 2**64,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs[0],
        num_top_logprobs=logprobs[1],
        num_prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
    )


def chat_logprobs(body: ChatBody) -> tuple[bool, int]:
    """Whether logprobs are wanted, and how many alternatives per token."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs logprobs: true")
    return bool(body.logprobs), body.top_logprobs or 0


def check_token_ids(param: str, token_ids: Sequence[int], vocab_size: int) -> None:
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise invalid(f"{param}[{index}]", f"expected a token id from 0 to {vocab_size - 1}")


def _logit_bias(biases: dict[str, Any], vocab_size: int) -> tuple[tuple[int, float], ...]:
    checked = {}
    for key, bias in biases.items():
        param = f"logit_bias.{key[:LOGIT_BIAS_KEY_CHARS_MAX]}"
        known = key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < vocab_size
        if not known:
            raise invalid(param, f"expected a key that is a token id from 0 to {vocab_size - 1}")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise invalid(param, "expected a number")
        if not abs(bias) <= LOGIT_BIAS_ABS_MAX:
            limit = LOGIT_BIAS_ABS_MAX
            raise invalid(param, f"expected a number from {-limit} to {limit}")
        checked[int(key)] = float(bias)
    return tuple(sorted(checked.items()))


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written and, since tokens hold blanks, as it follows one."""
    spelled = [text for word in words for text in (word, " " + word.lstrip())]
    tokens = (tuple(tokenizer.encode(text, add_special=False)) for text in spelled)
    return tuple(dict.fromkeys(each for each in tokens if each))


def _given(*values: float | None) -> float:
    """The first that is there; the last always is."""
    return next(value for value in values if value is not None)


def _short(value: float) -> str:
    """A number for a message; a client may send one of thousands of digits."""
    if isinstance(value, int) and abs(value) > 2**63:
        return "a much larger one" if value > 0 else "a much smaller one"
    return str(value)


def context_exceeded(
    param: str, context_tokens: int, num_prompt_tokens: int, max_tokens: int
) -> ApiError:
    """400 with OpenAI's code, and the words by which clients know that it is this."""
    message = (
        f"This model's maximum context length is {context_tokens} tokens, but the prompt has "
        f"{num_prompt_tokens} and {_short(max_tokens)} are asked for: the prompt is too long, or "
        "max_tokens too large"
    )
    return ApiError(400, message, param, "context_length_exceeded")
