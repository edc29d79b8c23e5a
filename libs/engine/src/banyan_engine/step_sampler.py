"""From a step's logits to what each of its items sampled, drafts and prompt logprobs included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from banyan_core.runner import PlanItem, Sampled
from banyan_core.types import OutputToken
from banyan_engine.draw import Logits
from banyan_engine.sampler import Mask, SamplingError, sample, with_logprobs
from banyan_engine.sequence_state import SequenceState


def num_logit_rows(item: PlanItem, state: SequenceState) -> int:
    """Of how many of the item's last tokens the logits are wanted."""
    if state.prompt_logprobs is not None:
        return len(item.token_ids)
    return 1 + item.num_draft_tokens if item.sample else 0


def sample_item(
    rows: Logits,
    item: PlanItem,
    state: SequenceState,
    end_token_ids: Sequence[int],
    allowed: Mask | None,
) -> Sampled | None:
    """What `rows` [num_logit_rows, vocab] bring; None for a chunk in the middle of a prompt."""
    try:
        if state.prompt_logprobs is not None and not state.failure:
            _add_prompt_logprobs(rows, item, state, state.prompt_logprobs)
        if not item.sample:
            return None
        if state.failure:
            raise SamplingError(state.failure)
        tokens = _sample_drafts(rows, item, state, end_token_ids, allowed)
        finished = _advance_grammar(state, tokens, end_token_ids)
    except SamplingError as error:
        state.failure = str(error)  # of a chunk in the middle, too: told when a token is due
        return Sampled(item.sequence_id, (), state.failure) if item.sample else None
    prompt_logprobs, state.prompt_logprobs = tuple(state.prompt_logprobs or ()), None
    return Sampled(item.sequence_id, tokens, finished=finished, prompt_logprobs=prompt_logprobs)


def _sample_drafts(
    rows: Logits,
    item: PlanItem,
    state: SequenceState,
    end_token_ids: Sequence[int],
    allowed: Mask | None,
) -> tuple[OutputToken, ...]:
    """A token, and another for each draft that was sampled just so."""
    tokens: list[OutputToken] = []
    for row in range(-1 - item.num_draft_tokens, 0):
        if tokens and tokens[-1].token_id != item.token_ids[row]:
            break
        try:
            token = sample(rows[row], state.sampling, state.history, end_token_ids, allowed)
        except SamplingError:
            if tokens:
                break  # the next step meets it again, as its first
            raise
        state.history.add(token.token_id)
        tokens.append(token)
    return tuple(tokens)


def _advance_grammar(
    state: SequenceState, tokens: Sequence[OutputToken], end_token_ids: Sequence[int]
) -> bool:
    """Whether the grammar allows nothing more."""
    if state.masks is None:
        return False
    token_ids = [token.token_id for token in tokens]
    if token_ids[-1] in end_token_ids:
        return True
    if not state.masks.advance(token_ids):
        raise SamplingError(f"grammar: token {token_ids} is not allowed here")
    return state.masks.is_finished


def _add_prompt_logprobs(
    rows: Logits, item: PlanItem, state: SequenceState, found: list[OutputToken]
) -> None:
    """Row i is of position start + i and says how likely the prompt's next token was."""
    num_top = state.sampling.num_prompt_logprobs or 0
    following = state.prompt_token_ids[item.start + 1 : item.start + 1 + len(rows)]
    for row, token_id in zip(rows, following, strict=False):
        if not row.max() < np.inf:
            raise SamplingError("logits: not finite")
        found.append(with_logprobs(row, token_id, num_top))
