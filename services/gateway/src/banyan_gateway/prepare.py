"""From a body's bytes to generation requests: parse, check, render, tokenise.

Pure and possibly slow (megabytes of text), so the API runs it off the event loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from banyan_core.types import Grammar, ModelCard, SamplingParams
from banyan_gateway import validate
from banyan_gateway.auth import Tenant
from banyan_gateway.errors import invalid
from banyan_gateway.ports import GenerationRequest
from banyan_gateway.response_format import check_grammar, wanted_grammar
from banyan_gateway.schema import (
    PROMPTS_MAX,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    Message,
    TokenizeBody,
    decode,
)
from banyan_gateway.served_models import ServedModels
from banyan_text.grammar import Grammars
from banyan_text.template import TemplateError
from banyan_text.tokenizer import Tokenizer

CHOICES_MAX = 128
_PIECE_TOKENS = 8192
_INLINE_BODY_BYTES = 4096
# Fields whose grammar has to be compiled, and the one way to write their names differently.
_SLOW_WORDS = (b"response_format", b"structured_outputs", b"tool_choice", b"\\u")
_COMPLETION_MAX_TOKENS = 16  # OpenAI's default


def is_quick(body: bytes) -> bool:
    """Whether to prepare a body in place: a change of threads would take longer."""
    return len(body) <= _INLINE_BODY_BYTES and not any(word in body for word in _SLOW_WORDS)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is known of a request besides its body. `answer_id` is new and unique."""

    answer_id: str
    tenant: Tenant
    received_ns: int
    drawn_seed: int
    deadline_ns: int | None
    operation: str = "chat"
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """One HTTP request as one generation request per prompt, and how to answer it."""

    requests: tuple[GenerationRequest, ...]
    ignored_fields: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class _Prompts:
    param: str
    token_ids: list[list[int]]


class Preparer:
    """Knows the model that this gateway serves. Every method raises ApiError only."""

    def __init__(self, tokenizer: Tokenizer, card: ModelCard, models: ServedModels) -> None:
        self._tokenizer = tokenizer
        self._card = card
        self._models = models
        self._grammars = Grammars(tokenizer, card.end_token_ids)
        self._numbers = tuple(range(tokenizer.vocab_size))

    def chat(self, data: bytes, arrival: Arrival) -> Prepared:
        body = decode(data, ChatBody)
        self._models.adapter_of(body.model)
        logprobs = validate.chat_logprobs(body)
        prompt = self._chat_prompt(body.messages)
        return self._prepare(body, _Prompts("messages", [prompt]), arrival, logprobs)

    def completion(self, data: bytes, arrival: Arrival) -> Prepared:
        body = decode(data, CompletionBody)
        self._models.adapter_of(body.model)
        logprobs = (body.logprobs is not None, body.logprobs or 0)
        if body.max_tokens is None:
            body.max_tokens = _COMPLETION_MAX_TOKENS
        prompts = _Prompts("prompt", self._plain_prompts(body.prompt))
        return self._prepare(body, prompts, arrival, logprobs)

    def tokenize(self, data: bytes) -> dict[str, object]:
        body = decode(data, TokenizeBody)
        self._models.adapter_of(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("prompt", "give either prompt or messages")
        if body.messages is not None:
            token_ids = self._chat_prompt(body.messages)
        else:
            token_ids = self._encode(
                "prompt", body.prompt or "", body.add_special_tokens is not False
            )
        strings = [
            self._tokenizer.token_bytes(each).decode("utf-8", "replace") for each in token_ids
        ]
        return {
            "count": len(token_ids),
            "max_model_len": self._card.context_tokens,
            "tokens": token_ids,
            "token_strs": strings if body.return_token_strs else None,
        }

    def detokenize(self, data: bytes) -> dict[str, object]:
        body = decode(data, DetokenizeBody)
        self._models.adapter_of(body.model)
        validate.check_token_ids("tokens", body.tokens, self._tokenizer.vocab_size)
        return {"prompt": self._tokenizer.decode(body.tokens)}

    def _chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        try:
            text = self._tokenizer.render_chat(validate.chat_messages(messages))
        except TemplateError as error:
            raise invalid("messages", str(error)) from None
        return self._encode("messages", text, add_special=False)

    def _plain_prompts(self, prompt: str | list[str | int | list[int]]) -> list[list[int]]:
        if isinstance(prompt, str):
            return [self._encode("prompt", prompt, add_special=True)]
        token_ids = [each for each in prompt if isinstance(each, int)]
        if token_ids and len(token_ids) == len(prompt):
            return [self._checked_ids("prompt", token_ids)]
        if token_ids or len({type(each) for each in prompt}) > 1:
            raise invalid(
                "prompt", "expected only strings, only token ids, or only lists of token ids"
            )
        if len(prompt) > PROMPTS_MAX:
            raise invalid("prompt", f"expected 1 to {PROMPTS_MAX} prompts")
        return [self._one_of_many(f"prompt[{i}]", each) for i, each in enumerate(prompt)]

    def _one_of_many(self, param: str, prompt: str | int | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._encode(param, prompt, add_special=True)
        return self._checked_ids(param, prompt if isinstance(prompt, list) else [prompt])

    def _checked_ids(self, param: str, token_ids: list[int]) -> list[int]:
        validate.check_token_ids(param, token_ids, self._tokenizer.vocab_size)
        return token_ids

    def _encode(self, param: str, text: str, add_special: bool) -> list[int]:
        num_tokens_min = len(text.encode()) // self._tokenizer.token_bytes_max
        if num_tokens_min > self._card.context_tokens:  # do not even tokenise megabytes
            raise validate.context_exceeded(param, self._card.context_tokens, num_tokens_min, 1)
        return self._tokenizer.encode(text, add_special)

    def _prepare(
        self,
        body: GenerationBody,
        prompts: _Prompts,
        arrival: Arrival,
        logprobs: tuple[bool, int],
    ) -> Prepared:
        validate.refuse_not_yet(body)
        include_usage, continuous_usage = validate.stream_options(body)
        adapter = self._models.adapter_of(body.model)
        n = body.n or 1
        if n * len(prompts.token_ids) > CHOICES_MAX:
            raise invalid("n", f"expected at most {CHOICES_MAX} choices over all prompts")
        sampling = validate.sampling(body, arrival.drawn_seed, self._tokenizer.vocab_size)
        sampling = dataclasses.replace(
            sampling,
            logprobs=logprobs[0],
            num_top_logprobs=logprobs[1],
            grammar=self._grammar(body),
        )
        template = GenerationRequest(
            request_id=arrival.answer_id,
            tenant=arrival.tenant.name,
            share_group=arrival.tenant.share_group,
            model=self._card.name if adapter is None else adapter.name,
            adapter=adapter,
            prompt_token_ids=(),
            sampling=sampling,
            n=n,
            stop=validate.stop_strings(body),
            include_stop=bool(body.include_stop_str_in_output),
            cache_salt=body.cache_salt or "",
            priority=body.priority or 0,
            stream=bool(body.stream),
            deadline_ns=arrival.deadline_ns,
            received_ns=arrival.received_ns,
            operation=arrival.operation,
            traceparent=arrival.traceparent,
        )
        wanted = validate.wanted_max_tokens(body)
        requests = self._requests(template, prompts, sampling, wanted)
        ignored = validate.ignored_fields(body)
        return Prepared(requests, ignored, bool(body.stream), include_usage, continuous_usage)

    def _grammar(self, body: GenerationBody) -> Grammar | None:
        wanted = wanted_grammar(body.response_format, body.structured_outputs)
        if wanted is None:
            return None
        if body.min_tokens:
            raise invalid("min_tokens", f"expected 0 with {wanted[0]}, which says when to end")
        check_grammar(*wanted, self._grammars)
        return wanted[1]

    def _requests(
        self,
        template: GenerationRequest,
        prompts: _Prompts,
        sampling: SamplingParams,
        wanted: tuple[str, int | None],
    ) -> tuple[GenerationRequest, ...]:
        requests = []
        alone = len(prompts.token_ids) == 1
        for index, token_ids in enumerate(prompts.token_ids):
            param = prompts.param if alone else f"{prompts.param}[{index}]"
            max_tokens = self._max_tokens(param, len(token_ids), wanted)
            if sampling.min_tokens > max_tokens:
                raise invalid("min_tokens", f"expected at most {wanted[0]}, which is {max_tokens}")
            request_id = template.request_id if alone else f"{template.request_id}-{index}"
            requests.append(
                dataclasses.replace(
                    template,
                    request_id=request_id,
                    prompt_token_ids=self._shared(token_ids),
                    sampling=dataclasses.replace(sampling, max_tokens=max_tokens),
                )
            )
        return tuple(requests)

    def _shared(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The same numbers as objects that all prompts share: 8 bytes a token, not 40.

        Piece by piece, since other threads get their turn only between calls like these.
        """
        number = self._numbers.__getitem__
        shared: list[int] = []
        for start in range(0, len(token_ids), _PIECE_TOKENS):
            shared.extend(map(number, token_ids[start : start + _PIECE_TOKENS]))
        return tuple(shared)

    def _max_tokens(
        self, param: str, num_prompt_tokens: int, wanted: tuple[str, int | None]
    ) -> int:
        if num_prompt_tokens == 0:
            raise invalid(param, "expected at least one token")
        context = self._card.context_tokens
        num_left = context - num_prompt_tokens
        name, value = wanted
        max_tokens = num_left if value is None else value
        if num_left < 1 or max_tokens > num_left:
            param = name if value is not None and value >= context else param
            raise validate.context_exceeded(param, context, num_prompt_tokens, max(max_tokens, 1))
        return max_tokens
