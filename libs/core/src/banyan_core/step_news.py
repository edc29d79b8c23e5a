"""What a step brought for one sequence: its tokens, perhaps its end, and the report of both."""

from __future__ import annotations

from typing import NamedTuple

from banyan_core.runner import Sampled
from banyan_core.sequence import Sequence
from banyan_core.types import Finish, ModelCard, OutputToken, SequenceReport

NO_TOKEN = Sampled("", (), "the runner returned no token")


class News(NamedTuple):
    """Tokens that were appended, and how the sequence ends if it does."""

    tokens: tuple[OutputToken, ...]
    finish: Finish | None = None
    error: str = ""
    prompt_logprobs: tuple[OutputToken, ...] = ()


def take_sampled(sequence: Sequence, sampled: Sampled, card: ModelCard) -> News:
    """Append what was sampled, up to the token that ends the sequence if one does."""
    if not sampled.tokens:
        return News((), Finish.FAILED, sampled.error)
    tokens, finish = sampled.tokens, None
    for num_taken, token in enumerate(tokens, 1):
        sequence.append(token)
        finish = sequence.finish_now(card)
        if finish is not None:
            tokens = tokens[:num_taken]
            break
    if finish is None and sampled.finished:
        finish = Finish.STOP
    if finish is None and sequence.hold:
        finish = Finish.LENGTH
    return News(tokens, finish, "", sampled.prompt_logprobs)


def report(now: int, sequence: Sequence, news: News) -> SequenceReport:
    """The news as its gateway hears it; with figures at the first token and at the end."""
    index = sequence.num_output_tokens - len(news.tokens)
    first = index == len(sequence.spec.output_token_ids)
    return SequenceReport(
        sequence.sequence_id,
        index,
        news.tokens,
        news.finish,
        news.error,
        sequence.figures(now) if first or news.finish is not None else None,
        news.prompt_logprobs,
    )
