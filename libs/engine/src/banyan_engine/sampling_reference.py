"""The judge of the sampler: the same definition, written down plainly, with full sorts.

`sampler.py` says what the steps are and in which order. Nothing here is called by the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.draw import SUM_TOKENS, Logits
from banyan_engine.sampler import (
    TINY_TEMPERATURE,
    SamplingError,
    draw_uniform,
)

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def sample(
    logits: Logits,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
    allowed: Sequence[bool] | None = None,
) -> OutputToken:
    """Draw token `len(output_token_ids)` from logits [vocab]. Raises SamplingError."""
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise SamplingError("logits: not finite")
    banned = _banned(len(logits), params, output_token_ids, end_token_ids, allowed)
    scores = _penalised(logits, params, prompt_token_ids, output_token_ids)
    scores[banned] = -np.inf
    if scores.max() == -np.inf:
        raise SamplingError("logits: every token is masked")
    if params.temperature < TINY_TEMPERATURE:
        token_id = int(scores.argmax())  # the first of equals, that is the lowest id
    else:
        uniform = draw_uniform(params.seed, len(output_token_ids))
        token_id = _draw(*candidates(scores, params), uniform)
    if not params.logprobs:
        return OutputToken(token_id)
    return _with_logprobs(logits, token_id, params.num_top_logprobs)


def candidates(scores: Logits, params: SamplingParams) -> tuple[Ids, Logits]:
    """Tokens that may be drawn, most likely first, with weights that need not sum to 1."""
    order = np.argsort(-scores, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    order = np.sort(order)
    weights = np.exp((scores[order] - scores.max()) / params.temperature)
    if params.typical_p < 1.0:
        order, weights = _typical(order, weights, params.typical_p)
    if params.top_p < 1.0:
        order, weights = _nucleus(order, weights, params.top_p)
    if params.min_p > 0.0:
        kept = weights >= params.min_p * weights.max()
        order, weights = order[kept], weights[kept]
    ranks = np.argsort(-weights, kind="stable")
    return order[ranks], weights[ranks]


def mass(weights: Logits) -> float:
    """The sum that shares are taken of: of single precision within a run, of double over them."""
    total = 0.0
    for start in range(0, len(weights), SUM_TOKENS):
        total += float(weights[start : start + SUM_TOKENS].sum())
    return total


def _nucleus(order: Ids, weights: Logits, share: float) -> tuple[Ids, Logits]:
    """The most likely until their mass reaches the share; in the order that they came."""
    ranks = np.argsort(-weights, kind="stable")
    return _head(order, weights, ranks, share)


def _typical(order: Ids, weights: Logits, share: float) -> tuple[Ids, Logits]:
    """Those whose surprise is nearest to the entropy until their mass reaches the share."""
    probabilities = weights.astype(np.float64) / mass(weights)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    drawn = probabilities > 0
    entropy = float((probabilities[drawn] * surprise[drawn]).sum())
    ranks = np.argsort(np.abs(surprise - entropy), kind="stable")
    return _head(order, weights, ranks, share)


def _head(order: Ids, weights: Logits, ranks: Ids, share: float) -> tuple[Ids, Logits]:
    before, num_kept, wanted = 0.0, 0, share * mass(weights)
    for rank in ranks:
        if num_kept and before >= wanted:
            break
        before += float(weights[rank])
        num_kept += 1
    kept = np.sort(ranks[:num_kept])
    return order[kept], weights[kept]


def _penalised(
    logits: Logits,
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
) -> Logits:
    """Logits after bias and penalties, in single precision."""
    scores = logits.copy()
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < len(scores):
            raise SamplingError(f"logit_bias: token {token_id}, expected 0 to {len(scores) - 1}")
        scores[token_id] += np.float32(bias)
    penalty = np.float32(params.repetition_penalty)
    for token_id in {*prompt_token_ids, *output_token_ids} if penalty != 1.0 else ():
        value = scores[token_id]
        scores[token_id] = value / penalty if value > 0 else value * penalty
    for token_id in set(output_token_ids):
        count = output_token_ids.count(token_id)
        scores[token_id] -= np.float32(params.presence_penalty + params.frequency_penalty * count)
    return scores


def _banned(
    vocab_size: int,
    params: SamplingParams,
    output_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
    allowed: Sequence[bool] | None,
) -> list[int]:
    banned = set()
    if allowed is not None:
        banned |= {token_id for token_id in range(vocab_size) if not allowed[token_id]}
    if params.allowed_token_ids:
        banned |= set(range(vocab_size)) - set(params.allowed_token_ids)
    for *head, last in filter(None, params.bad_words):
        if list(output_token_ids[len(output_token_ids) - len(head) :]) == head:
            banned.add(last)
    if len(output_token_ids) < params.min_tokens:
        banned |= {*params.stop_token_ids, *end_token_ids}
    return sorted(token_id for token_id in banned if 0 <= token_id < vocab_size)


def _draw(order: Ids, weights: Logits, uniform: float) -> int:
    """Walk up the token ids: first over runs of SUM_TOKENS candidates, then within one."""
    by_id = np.argsort(order)
    order, weights = order[by_id], weights[by_id]
    left = uniform * mass(weights)
    before = 0.0
    for start in range(0, len(weights), SUM_TOKENS):
        run = weights[start : start + SUM_TOKENS]
        if before + float(run.sum()) > left:
            break
        before += float(run.sum())
    left -= before
    reached = [sum(map(float, run[: place + 1])) for place in range(len(run))]
    drawn = [place for place in range(len(run)) if reached[place] > left]
    # Runs are summed in single precision: the last may end a little before its own sum.
    place = drawn[0] if drawn else max(place for place in range(len(run)) if run[place] > 0)
    return int(order[start + place])


def _with_logprobs(logits: Logits, token_id: int, num_top: int) -> OutputToken:
    raw: Floats = logits.astype(np.float64)
    shifted = raw - raw.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    order = np.argsort(-logprobs, kind="stable")[:num_top]
    top = tuple((int(token), float(logprobs[token])) for token in order)
    return OutputToken(token_id, float(logprobs[token_id]), top)
