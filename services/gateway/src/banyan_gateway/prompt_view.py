"""What a plain completion repeats of its prompt: `echo` and `prompt_logprobs`.

It opens each choice and is said once, by the half that writes the answer: a worker that dies, and
another that computes the prompt again, cannot make it come twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from banyan_gateway.errors import invalid
from banyan_gateway.ports import Delta, GenerationRequest, Usage
from banyan_gateway.schema import CompletionBody
from banyan_text.tokenizer import Tokenizer, decode_all


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """`text` is the client's own where it gave text; `shown` are special tokens spelt out in it."""

    text: str
    token_ids: tuple[int, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptView:
    """`prompts` are empty without `echo`; each opens `n` choices. `num_logprobs` is vLLM's
    `prompt_logprobs`, None if they are not wanted. `alone`: the answer is the prompt and no more.
    """

    prompts: tuple[EchoedPrompt, ...]
    num_choices: int
    n: int
    num_logprobs: int | None
    alone: bool

    def of(self, choice: int) -> EchoedPrompt | None:
        return self.prompts[choice // self.n] if self.prompts else None

    def said(self, delta: Delta) -> Delta:
        """Without the one token that was sampled, where the answer is the prompt alone."""
        if not self.alone:
            return delta
        reason = "length" if delta.finish_reason else None
        return Delta(delta.choice, "", (), reason, delta.prompt_logprobs)

    def counted(self, usage: Usage) -> Usage:
        if not self.alone:
            return usage
        return Usage(usage.num_prompt_tokens, 0, usage.num_cached_tokens)


def check_echo(body: CompletionBody) -> None:
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens", "expected at least 1 without echo: true")


def num_prompt_logprobs(body: CompletionBody) -> int | None:
    """How many alternatives the workers must find for each token of the prompt."""
    wanted = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((each for each in wanted if each is not None), default=None)


def prompt_view(
    body: CompletionBody, requests: tuple[GenerationRequest, ...], tokenizer: Tokenizer
) -> PromptView | None:
    """None for an answer that says nothing of its prompt, as most do."""
    if not body.echo and body.prompt_logprobs is None:
        return None
    texts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    prompts = []
    for place, request in enumerate(requests if body.echo else ()):
        given = texts[place] if len(texts) == len(requests) else None
        prompts.append(_echoed(given, request, tokenizer))
    return PromptView(
        tuple(prompts),
        len(requests) * requests[0].n,
        requests[0].n,
        body.prompt_logprobs,
        body.max_tokens == 0,
    )


def _echoed(given: object, request: GenerationRequest, tokenizer: Tokenizer) -> EchoedPrompt:
    token_ids = request.prompt_token_ids
    if isinstance(given, str):
        spelt = tuple(each for each in tokenizer.special_ids if each in given)
        return EchoedPrompt(given, token_ids, spelt)
    text = decode_all(tokenizer.decode_stream(request.shown), token_ids)
    return EchoedPrompt(text, token_ids, request.shown)
