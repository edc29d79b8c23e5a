"""From one row of logits to one token: a pure function, so that any worker draws the same.

The order of the steps is part of the contract: logit bias; repetition, presence and frequency
penalties; end tokens masked while the output is shorter than `min_tokens`; temperature; top-k;
top-p; min-p; the draw. The only randomness is H(seed, index). What is left is ordered by
probability, ties by token id, and the draw walks down that order (inverse CDF). Log probabilities
are those of the model itself, before any of it, as OpenAI's API has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banyan_core.hashing import derive
from banyan_core.types import OutputToken, SamplingParams

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

UNIFORM_BITS = 53
"""Bits of a draw: as many as a double in [0, 1) holds."""


class SamplingError(ValueError):
    """This row gives no token. Other rows of the batch are not touched by it."""


def sample(
    logits: Logits,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
) -> OutputToken:
    """Draw token `len(output_token_ids)` from logits [vocab]. Raises SamplingError."""
    if not np.isfinite(logits).all():
        raise SamplingError("logits: not finite")
    scores = _adjusted(logits, params, prompt_token_ids, output_token_ids, end_token_ids)
    if scores.max() == -np.inf:
        raise SamplingError("logits: every token is masked")
    if params.temperature == 0.0:
        token_id = int(scores.argmax())  # the first of equals, that is the lowest id
    else:
        uniform = draw_uniform(params.seed, len(output_token_ids))
        token_id = _draw(*candidates(scores, params), uniform)
    if not params.logprobs:
        return OutputToken(token_id)
    return _with_logprobs(logits, token_id, params.num_top_logprobs)


def is_plain_greedy(params: SamplingParams) -> bool:
    """Whether the token is the argmax of the raw logits, so that a batch can take it at once."""
    return (
        params.temperature == 0.0
        and params.repetition_penalty == 1.0
        and params.presence_penalty == params.frequency_penalty == 0.0
        and not (params.logit_bias or params.min_tokens or params.logprobs)
    )


def draw_uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only."""
    bits: int = derive(seed, index) >> (63 - UNIFORM_BITS)
    return bits / float(1 << UNIFORM_BITS)


def candidates(scores: Floats, params: SamplingParams) -> tuple[Ids, Floats]:
    """Tokens that may be drawn, most likely first, with weights that need not sum to 1.

    Keeps at least one token. top-k keeps exactly k; top-p the shortest head whose probability
    reaches it, among what top-k left; min-p those at least that share of the most likely.
    """
    order = np.argsort(-scores, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = np.exp((scores[order] - scores[order[0]]) / params.temperature)
    if params.top_p < 1.0:
        before = np.cumsum(weights) - weights
        num_kept = int(np.count_nonzero(before < params.top_p * weights.sum()))
        order, weights = order[: max(num_kept, 1)], weights[: max(num_kept, 1)]
    if params.min_p > 0.0:
        num_kept = max(int(np.count_nonzero(weights >= params.min_p)), 1)
        order, weights = order[:num_kept], weights[:num_kept]
    return order, weights


def _adjusted(
    logits: Logits,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
) -> Floats:
    """Logits after bias, penalties and the mask of end tokens, in double precision."""
    scores: Floats = logits.astype(np.float64)
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < len(scores):
            raise SamplingError(f"logit_bias: token {token_id}, expected 0 to {len(scores) - 1}")
        scores[token_id] += bias
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*prompt_token_ids, *output_token_ids], dtype=np.int64))
        values = scores[seen]
        penalty = params.repetition_penalty
        scores[seen] = np.where(values > 0, values / penalty, values * penalty)
    if output_token_ids and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.array(output_token_ids, dtype=np.int64), return_counts=True)
        scores[seen] -= params.presence_penalty + params.frequency_penalty * counts
    if len(output_token_ids) < params.min_tokens:
        ends = (*params.stop_token_ids, *end_token_ids)
        scores[[token for token in ends if token < len(scores)]] = -np.inf
    return scores


def _draw(token_ids: Ids, weights: Floats, uniform: float) -> int:
    cumulated = np.cumsum(weights)
    place = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    return int(token_ids[min(place, len(token_ids) - 1)])


def _with_logprobs(logits: Logits, token_id: int, num_top: int) -> OutputToken:
    raw: Floats = logits.astype(np.float64)
    shifted = raw - raw.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    order = np.argsort(-logprobs, kind="stable")[:num_top]
    top = tuple((int(token), float(logprobs[token])) for token in order)
    return OutputToken(token_id, float(logprobs[token_id]), top)
