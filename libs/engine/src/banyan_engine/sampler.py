"""From one row of logits to one token: a pure function, so that any worker draws the same.

The order of the steps is part of the contract: logit bias; repetition, presence and frequency
penalties; masks (the grammar's, allowed tokens, bad words, end tokens while the output is shorter
than `min_tokens`); temperature; top-k; typical-p; top-p; min-p; the draw. The only randomness is
H(seed, index). The draw walks up the token ids that are left (inverse CDF). Log probabilities are
those of the model itself, before any of it, as OpenAI's API has them.

A row of 150,000 logits fits a core's cache and a batch of them does not: so rows go one by one,
each in three passes (the largest, the exponentials, their sums), and no step sorts a vocabulary.
`sampling_reference.py` is the same definition without any of this, and judges it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banyan_core.hashing import derive
from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.history import History

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

UNIFORM_BITS = 53
"""Bits of a draw: as many as a double in [0, 1) holds."""
SUM_TOKENS = 512
"""Weights are summed in runs of so many, in single precision; the runs' sums in double."""
TINY_TEMPERATURE = 1e-5
"""Below it there is no difference to greedy, only overflow."""
SORTED_TOKENS = 4096
"""Where a head ends is found by halving above, by sorting below."""


class SamplingError(ValueError):
    """This row gives no token. Other rows of the batch are not touched by it."""


def sample(
    logits: Logits,
    params: SamplingParams,
    history: History,
    end_token_ids: Sequence[int],
    allowed: Mask | None = None,
) -> OutputToken:
    """Draw token `history.num_output` from logits [vocab]. Raises SamplingError.

    `allowed` is the grammar's mask. A logit of minus infinity is a token that is never drawn.
    """
    best = int(logits.argmax())  # the first NaN, if there is one; of equals the lowest id
    if not logits[best] < np.inf:
        raise SamplingError("logits: not finite")
    scores = _adjusted(logits, params, history, end_token_ids, allowed)
    if scores is not logits:
        best = int(scores.argmax())
        if not scores[best] < np.inf:
            raise SamplingError("logits: not finite after penalties and biases")
    if scores[best] == -np.inf:
        raise SamplingError("logits: every token is masked")
    if params.temperature >= TINY_TEMPERATURE:
        uniform = draw_uniform(params.seed, history.num_output)
        best = _draw(scores, scores[best], params, uniform)
    if not params.logprobs:
        return OutputToken(best)
    return with_logprobs(logits, best, params.num_top_logprobs)


def draw_uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on the seed and the token's index only."""
    bits: int = derive(seed, index) >> (63 - UNIFORM_BITS)
    return bits / float(1 << UNIFORM_BITS)


def with_logprobs(logits: Logits, token_id: int, num_top: int) -> OutputToken:
    """The token with its log probability, and the `num_top` most likely with theirs."""
    largest = float(logits.max())
    base = largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        token_ids = _largest(logits, num_top)
        token_ids = token_ids[np.argsort(-logits[token_ids], kind="stable")]
        top = tuple((int(one), float(logits[one]) - base) for one in token_ids)
    return OutputToken(token_id, float(logits[token_id]) - base, top)


# ---------------------------------------------------------------- bias, penalties, masks


def _adjusted(
    logits: Logits,
    params: SamplingParams,
    history: History,
    end_token_ids: Sequence[int],
    allowed: Mask | None,
) -> Logits:
    """The logits themselves when nothing changes them, else a copy that is changed."""
    banned = _banned(params, history, end_token_ids)
    if not (banned or params.logit_bias or history.tracks or params.allowed_token_ids):
        return logits if allowed is None else np.where(allowed, logits, -np.inf)
    scores = logits.copy()
    for token_id, bias in params.logit_bias:
        if not 0 <= token_id < len(scores):
            raise SamplingError(f"logit_bias: token {token_id}, expected 0 to {len(scores) - 1}")
        scores[token_id] += np.float32(bias)
    if history.tracks:
        _penalise(scores, params, history)
    if allowed is not None:
        scores[~allowed] = -np.inf
    if params.allowed_token_ids:
        kept = [token for token in params.allowed_token_ids if 0 <= token < len(scores)]
        values = scores[kept]
        scores.fill(-np.inf)
        scores[kept] = values
    scores[[token for token in banned if 0 <= token < len(scores)]] = -np.inf
    return scores


def _penalise(scores: Logits, params: SamplingParams, history: History) -> None:
    token_ids, counts = history.seen()
    values = scores[token_ids]
    if params.repetition_penalty != 1.0:
        penalty = np.float32(params.repetition_penalty)
        with np.errstate(over="ignore", divide="ignore"):  # `sample` looks at what came of it
            values = np.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        less = params.presence_penalty + params.frequency_penalty * counts
        values -= np.where(counts > 0, less, 0.0).astype(np.float32)
    scores[token_ids] = values


def _banned(params: SamplingParams, history: History, end_token_ids: Sequence[int]) -> list[int]:
    banned: list[int] = []
    for word in params.bad_words:
        if word and history.ends_with(word[:-1]):
            banned.append(word[-1])
    if history.num_output < params.min_tokens:
        banned += params.stop_token_ids
        banned += end_token_ids
    return banned


# ---------------------------------------------------------------- the draw


def _draw(scores: Logits, largest: np.float32, params: SamplingParams, uniform: float) -> int:
    ids: Ids | None = None  # None is all
    if 0 < params.top_k < len(scores):
        ids = _largest(scores, params.top_k)
        scores = scores[ids]
    weights = np.subtract(scores, largest)
    weights /= np.float32(params.temperature)
    np.exp(weights, out=weights)
    if params.typical_p < 1.0:
        ids, weights = _narrowed(ids, weights, _typical(weights, params.typical_p))
    if params.top_p < 1.0:
        _keep_nucleus(weights, params.top_p)
    if params.min_p > 0.0:
        kept = np.flatnonzero(weights >= params.min_p * weights.max())
        ids, weights = _narrowed(ids, weights, kept)
    place = _walk(weights, uniform)
    return place if ids is None else int(ids[place])


def _narrowed(ids: Ids | None, weights: Logits, kept: Ids) -> tuple[Ids, Logits]:
    return (kept if ids is None else ids[kept]), weights[kept]


def _sums(weights: Logits) -> NDArray[np.float64]:
    """Mass up to the end of each run of SUM_TOKENS."""
    num_whole = len(weights) // SUM_TOKENS * SUM_TOKENS
    sums = weights[:num_whole].reshape(-1, SUM_TOKENS).sum(axis=1)
    if num_whole < len(weights):
        sums = np.append(sums, weights[num_whole:].sum())
    return np.cumsum(sums, dtype=np.float64)


def _walk(weights: Logits, uniform: float) -> int:
    """The place at which this share of the mass is reached."""
    sums = _sums(weights)
    left = uniform * sums[-1]
    run = int(np.searchsorted(sums, left, side="right"))
    start = run * SUM_TOKENS
    if run:
        left -= sums[run - 1]
    within = np.cumsum(weights[start : start + SUM_TOKENS], dtype=np.float64)
    place = int(np.searchsorted(within, left, side="right"))
    if place == len(within):  # the two precisions differ by less than a token's weight
        place = int(np.flatnonzero(weights[start : start + SUM_TOKENS])[-1])
    return start + place


def _largest(values: Logits, num: int) -> Ids:
    """Ids of the `num` largest, of equals the lowest, in order of id."""
    if num >= len(values):
        return np.arange(len(values))
    return _down_to(values, np.partition(values, len(values) - num)[len(values) - num], num)


def _down_to(values: Logits, cut: np.float32, num: int) -> Ids:
    """Ids of the `num` largest, the last of which has the value `cut`."""
    ids = np.flatnonzero(values >= cut)
    if len(ids) > num:
        at_cut = np.flatnonzero(values[ids] == cut)
        ids = np.delete(ids, at_cut[len(at_cut) - (len(ids) - num) :])
    return ids


def _keep_nucleus(weights: Logits, share: float) -> None:
    """Set to zero what is not in the shortest head whose mass reaches the share; one stays."""
    cut, num_at_cut = _end_of_head(weights, share * _sums(weights)[-1])
    at_cut = np.flatnonzero(weights == cut)
    np.multiply(weights, weights >= cut, out=weights)
    weights[at_cut[num_at_cut:]] = 0.0


def _end_of_head(weights: Logits, wanted: float) -> tuple[np.float32, int]:
    """The smallest weight of the head that has this mass, and how many of its equals belong to it.

    Halves what is in question until little is left to sort: the values need no ids for that.
    """
    part, num_above, above = weights.copy(), 0, 0.0
    middle = len(part) * 15 // 16  # most heads are short
    while len(part) > SORTED_TOKENS:
        part.partition(middle)
        mass = part[middle:].sum(dtype=np.float64)
        if above + mass >= wanted:
            part = part[middle:]
        else:
            num_above, above = num_above + len(part) - middle, above + mass
            part = part[:middle]
        middle = len(part) // 2
    part = -np.sort(-part)
    reached = above + np.cumsum(part, dtype=np.float64)
    last = int(np.count_nonzero(reached[:-1] < wanted))
    num_larger = int(np.count_nonzero(weights > part[last]))
    return part[last], num_above + last + 1 - num_larger


def _typical(weights: Logits, share: float) -> Ids:
    """Those whose surprise is nearest to the entropy, until their mass reaches the share."""
    total = _sums(weights)[-1]
    probabilities = weights.astype(np.float64) / total
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    drawn = probabilities > 0
    entropy = float((probabilities[drawn] * surprise[drawn]).sum())
    ranks = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = np.cumsum(weights[ranks], dtype=np.float64)
    num_kept = 1 + int(np.count_nonzero(reached[:-1] < share * total))
    return np.sort(ranks[:num_kept])
