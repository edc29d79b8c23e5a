"""From a body's bytes to generation requests: parse, check, render, tokenise.

Pure and possibly slow (megabytes of text), so the API runs it off the event loop.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from banyan_core.types import Grammar, ModelCard, SamplingParams
from banyan_gateway import validate
from banyan_gateway.auth import Tenant
from banyan_gateway.chat_prompt import chat_text
from banyan_gateway.choice_parts import PLAIN, PartFormats
from banyan_gateway.errors import invalid
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.model_formats import NO_FORMATS, ModelFormats
from banyan_gateway.ports import GenerationRequest
from banyan_gateway.prompt_view import PromptView, check_echo, num_prompt_logprobs, prompt_view
from banyan_gateway.prompts import PromptReader, Prompts
from banyan_gateway.response_format import check_grammar, wanted_grammar
from banyan_gateway.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TokenizeBody,
    decode,
)
from banyan_gateway.served_models import ServedModels
from banyan_gateway.tool_use import ToolUse, check_tools, tool_use
from banyan_text.tokenizer import Tokenizer

CHOICES_MAX = 128
_TAIL_CHARS = 64  # of a prompt: longer than any tag that opens reasoning
_INLINE_BODY_BYTES = 4096
# Fields whose grammar has to be compiled, and the one way to write their names differently.
_GRAMMAR_WORDS = (b"response_format", b"structured_outputs", b"tool_choice", b"\\u")
_COMPLETION_MAX_TOKENS = 16  # OpenAI's default


def is_quick(body: bytes) -> bool:
    """Whether to prepare a body in place: a change of threads would take longer."""
    return len(body) <= _INLINE_BODY_BYTES and not may_check_grammar(body)


def may_check_grammar(body: bytes) -> bool:
    """Whether preparing it may wait for a grammar to be compiled, seconds if it is a bad one."""
    return any(word in body for word in _GRAMMAR_WORDS)


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
    parts: PartFormats = PLAIN
    prompt_view: PromptView | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a kind of body adds to what all have in common."""

    logprobs: tuple[bool, int]
    num_prompt_logprobs: int | None
    grammar: Grammar | None
    parts: PartFormats = PLAIN


class Preparer:
    """Knows the model that this gateway serves. Every method raises ApiError only."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        card: ModelCard,
        models: ServedModels,
        trials: GrammarTrials,
        formats: ModelFormats = NO_FORMATS,
    ) -> None:
        self._tokenizer = tokenizer
        self._formats = formats
        self._card = card
        self._models = models
        self._trials = trials
        self._prompts = PromptReader(tokenizer, card.context_tokens)

    def chat(self, data: bytes, arrival: Arrival) -> Prepared:
        body = decode(data, ChatBody)
        self._models.adapter_of(body.model)
        logprobs = validate.chat_logprobs(body)
        use = self._tool_use(body)
        text = chat_text(
            self._tokenizer,
            body.messages,
            None if use is None else use.described,
            body.chat_template_kwargs,
            body.add_generation_prompt,
            bool(body.continue_final_message),
        )
        prompts = self._prompts.rendered(text)
        grammar = self._grammar(body) if use is None or use.grammar is None else use.grammar
        parts = self._parts(use, grammar, text)
        wanted = _Wanted(logprobs, body.prompt_logprobs, grammar, parts)
        return self._prepare(body, prompts, arrival, wanted)

    def completion(self, data: bytes, arrival: Arrival) -> Prepared:
        body = decode(data, CompletionBody)
        self._models.adapter_of(body.model)
        logprobs = (body.logprobs is not None, body.logprobs or 0)
        if body.max_tokens is None:
            body.max_tokens = _COMPLETION_MAX_TOKENS
        check_echo(body)
        prompts = self._prompts.plain(body.prompt)
        wanted = _Wanted(logprobs, num_prompt_logprobs(body), self._grammar(body))
        prepared = self._prepare(body, prompts, arrival, wanted)
        view = prompt_view(body, prepared.requests, self._tokenizer)
        return prepared if view is None else dataclasses.replace(prepared, prompt_view=view)

    def tokenize(self, data: bytes) -> dict[str, object]:
        body = decode(data, TokenizeBody)
        self._models.adapter_of(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise invalid("prompt", "give either prompt or messages")
        if body.messages is not None:
            text = chat_text(self._tokenizer, body.messages)
            token_ids = self._prompts.rendered(text).token_ids[0]
        else:
            add_special = body.add_special_tokens is not False
            token_ids = self._prompts.encode("prompt", body.prompt or "", add_special)
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

    def _tool_use(self, body: ChatBody) -> ToolUse | None:
        parallel = body.parallel_tool_calls is not False
        token_of = self._tokenizer.special_ids.get
        use = tool_use(body.tools, body.tool_choice, parallel, self._formats.tools, token_of)
        if use is not None and use.grammar is not None:
            self._check_ends("tool_choice", body)
            check_tools(use, body.tools or (), self._trials)
        return use

    def _parts(self, use: ToolUse | None, grammar: Grammar | None, text: str) -> PartFormats:
        """A grammar rules the answer from its first token on: it leaves no room for reasoning."""
        return PartFormats(
            tools=None if use is None else use.format,
            reasoning=self._formats.reasoning if grammar is None else None,
            calls_max=None if use is None else use.calls_max,
            prompt_tail=text[-_TAIL_CHARS:],
        )

    def _prepare(
        self,
        body: GenerationBody,
        prompts: Prompts,
        arrival: Arrival,
        asked: _Wanted,
    ) -> Prepared:
        validate.refuse_not_yet(body)
        include_usage, continuous_usage = validate.stream_options(body)
        adapter = self._models.adapter_of(body.model)
        n = body.n or 1
        if n * len(prompts.token_ids) > CHOICES_MAX:
            raise invalid("n", f"expected at most {CHOICES_MAX} choices over all prompts")
        limits = self._token_limits(body, prompts)
        sampling = validate.sampling(
            body,
            arrival.drawn_seed,
            self._tokenizer,
            self._formats.defaults,
            max_tokens=limits[0],
            logprobs=asked.logprobs,
            num_prompt_logprobs=asked.num_prompt_logprobs,
            grammar=asked.grammar,
        )
        stop, shown = validate.stop_strings(body), self._shown(body, asked.parts)
        alone = len(prompts.token_ids) == 1
        requests = [
            GenerationRequest(
                request_id=arrival.answer_id if alone else f"{arrival.answer_id}-{index}",
                tenant=arrival.tenant.name,
                share_group=arrival.tenant.share_group,
                model=self._card.name if adapter is None else adapter.name,
                adapter=adapter,
                prompt_token_ids=self._prompts.shared(token_ids),
                sampling=_limited(sampling, limits[index]),
                n=n,
                stop=stop,
                include_stop=bool(body.include_stop_str_in_output),
                cache_salt=body.cache_salt or "",
                priority=body.priority or 0,
                stream=bool(body.stream),
                deadline_ns=arrival.deadline_ns,
                received_ns=arrival.received_ns,
                operation=arrival.operation,
                traceparent=arrival.traceparent,
                shown=shown,
            )
            for index, token_ids in enumerate(prompts.token_ids)
        ]
        return Prepared(
            tuple(requests),
            validate.ignored_fields(body),
            bool(body.stream),
            include_usage,
            continuous_usage,
            asked.parts,
        )

    def _grammar(self, body: GenerationBody) -> Grammar | None:
        wanted = wanted_grammar(body.response_format, body.structured_outputs)
        if wanted is None:
            return None
        self._check_ends(wanted[0], body)
        check_grammar(*wanted, self._trials)
        return wanted[1]

    def _check_ends(self, param: str, body: GenerationBody) -> None:
        if body.min_tokens:
            raise invalid("min_tokens", f"expected 0 with {param}, which says when to end")
        if body.allowed_token_ids is not None:
            raise invalid("allowed_token_ids", f"{param} says already what is allowed")

    def _shown(self, body: GenerationBody, parts: PartFormats) -> tuple[str, ...]:
        """The special tokens that the text spells out."""
        if body.skip_special_tokens is False:
            return tuple(self._tokenizer.special_ids)
        return parts.shown

    def _token_limits(self, body: GenerationBody, prompts: Prompts) -> list[int]:
        """Of each prompt's answer, at least 1: a prompt alone is scored by a step that samples, and
        its token is not said."""
        wanted = validate.wanted_max_tokens(body)
        alone = len(prompts.token_ids) == 1
        limits = []
        for index, token_ids in enumerate(prompts.token_ids):
            param = prompts.param if alone else f"{prompts.param}[{index}]"
            max_tokens = self._max_tokens(param, len(token_ids), wanted)
            if (body.min_tokens or 0) > max_tokens:
                raise invalid("min_tokens", f"expected at most {wanted[0]}, which is {max_tokens}")
            limits.append(max(1, max_tokens))
        return limits

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


def _limited(sampling: SamplingParams, max_tokens: int) -> SamplingParams:
    """Mostly the very same: prompts of one body differ in it only where nobody set a limit."""
    if sampling.max_tokens == max_tokens:
        return sampling
    return dataclasses.replace(sampling, max_tokens=max_tokens)
