"""A model folder as a Python object: `LLM(folder).generate(prompts)`, without a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from banyan_core.scheduler import EngineLimits
from banyan_core.types import ModelCard, SamplingParams
from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.template import TemplateError
from banyan_text.tokenizer import Tokenizer
from banyan_worker.offline_engine import OfflineAnswer, OfflineEngine, OfflineRequest
from banyan_worker.runners import RunnerKind, load_runner

KV_BYTES = 1 << 30
BLOCK_SIZE = 16
Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, str]]


class LLM:
    """A model in this process. `numerics` is "fast" or "deterministic", as for a worker.

    Raises SettingsError for a folder or a number that cannot be used.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        numerics: str = "fast",
        kv_bytes: int = KV_BYTES,
        num_threads: int | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        path = Path(folder)
        loaded = load_runner(
            RunnerKind.TORCH,
            prefix="",
            folder=path,
            name=None,
            numerics=numerics,
            block_size=BLOCK_SIZE,
            kv_bytes=kv_bytes,
            num_blocks=None,
            num_threads=num_threads,
        )
        self._card = loaded.card
        self._tokenizer = HfTokenizer(path)
        limits = limits or EngineLimits()
        self._engine = OfflineEngine(loaded.runner, loaded.card, self._tokenizer, limits)

    @property
    def card(self) -> ModelCard:
        return self._card

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        stop: Sequence[str] = (),
    ) -> list[OfflineAnswer]:
        """An answer for each prompt (text, or token ids), in their order.

        `params` are for all prompts, or one for each; by default greedy. A prompt that the engine
        cannot finish has an `error` in its answer, and the others go on. Raises ValueError for
        arguments that make no sense, and names the prompt.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts: expected a list of prompts, got one string")
        each_params = _one_for_each(params, len(prompts))
        encoded = (self._encode(f"prompts[{i}]", each) for i, each in enumerate(prompts))
        return self._in_order(encoded, each_params, n, tuple(stop))

    def chat(
        self,
        conversations: Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        stop: Sequence[str] = (),
    ) -> list[OfflineAnswer]:
        """As `generate`, for conversations: each a list of messages with `role` and `content`."""
        if any(isinstance(each, Mapping) for each in conversations):
            raise ValueError("conversations: expected a list of lists of messages")
        each_params = _one_for_each(params, len(conversations))
        rendered = (self._render(i, each) for i, each in enumerate(conversations))
        return self._in_order(rendered, each_params, n, tuple(stop))

    def answers(self, requests: Iterable[OfflineRequest]) -> Iterator[OfflineAnswer]:
        """Answers as they end; for more requests than fit into memory."""
        return self._engine.answers(requests)

    def _in_order(
        self,
        prompts: Iterable[tuple[int, ...]],
        params: Sequence[SamplingParams],
        n: int,
        stop: tuple[str, ...],
    ) -> list[OfflineAnswer]:
        if n < 1:
            raise ValueError(f"n: {n}, expected at least 1")
        if not all(stop):
            raise ValueError("stop: a stop string must not be empty")
        requests = (
            OfflineRequest(
                request_id=str(index),
                prompt_token_ids=token_ids,
                sampling=params[index],
                n=n,
                stop=stop,
            )
            for index, token_ids in enumerate(prompts)
        )
        ended = {int(answer.request_id): answer for answer in self._engine.answers(requests)}
        return [ended[index] for index in range(len(ended))]

    def _render(self, index: int, messages: Messages) -> tuple[int, ...]:
        try:
            text = self._tokenizer.render_chat(messages)
        except TemplateError as error:
            raise ValueError(f"conversations[{index}]: {error}") from None
        return self._checked(f"conversations[{index}]", self._tokenizer.encode(text, False))

    def _encode(self, name: str, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return self._checked(name, self._tokenizer.encode(prompt, add_special=True))
        return self._checked(name, prompt)

    def _checked(self, name: str, token_ids: Sequence[int]) -> tuple[int, ...]:
        vocab_size, context = self._tokenizer.vocab_size, self._card.context_tokens
        if not 1 <= len(token_ids) < context:
            expected = f"expected 1 to {context - 1}"
            raise ValueError(f"{name}: {len(token_ids)} tokens, {expected}")
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise ValueError(f"{name}: expected token ids from 0 to {vocab_size - 1}")
        return tuple(token_ids)


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams(temperature=0.0)] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(f"params: {len(params)}, expected one for each of {num_prompts} prompts")
    return params
