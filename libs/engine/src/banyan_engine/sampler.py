"""From one row of logits to one token: a pure function, so that any worker draws the same.

The order of the steps is part of the contract: logit bias; repetition, presence and frequency
penalties; masks (the grammar's, allowed tokens, bad words, end tokens while the output is shorter
than `min_tokens`); temperature; top-k; typical-p; top-p; min-p; the draw. The only randomness is
H(seed, index). The draw walks up the token ids that are left (inverse CDF). Log probabilities are
those of the model itself, before any of it, as OpenAI's API has them.

Bias, penalties and banned tokens are written into the row itself, which has its values back at the
end: a copy would cost more than the draw. `sampling_reference.py` is the same definition, plainly,
and judges it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banyan_core.hashing import derive
from banyan_core.types import OutputToken, SamplingParams
from banyan_engine.draw import Ids, Logits, draw, largest_ids, row_room
from banyan_engine.history import History

Mask = NDArray[np.bool_]

UNIFORM_BITS = 53
"""Bits of a draw: as many as a double in [0, 1) holds."""
TINY_TEMPERATURE = 1e-5
"""Below it there is no difference to greedy, only overflow."""


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
    banned = _banned(params, history, end_token_ids, len(logits))
    changed = _changed_ids(params, history, banned, len(logits))
    if changed is None:
        token_id = _choose(logits, best, params, history, allowed)
    else:
        values = logits[changed]
        try:
            largest = logits[best]
            _change(logits, params, history, banned)
            stays = logits[best] == largest and logits[changed].max(initial=-np.inf) < largest
            token_id = _choose(logits, best if stays else None, params, history, allowed)
        finally:
            logits[changed] = values
    if not params.logprobs:
        return OutputToken(token_id)
    return with_logprobs(logits, token_id, params.num_top_logprobs)


def _choose(
    scores: Logits, best: int | None, params: SamplingParams, history: History, allowed: Mask | None
) -> int:
    """`best` is the likeliest, if that is known."""
    if allowed is not None or params.allowed_token_ids:
        scores, best = _masked(scores, params, allowed), None
    if best is None:
        best = int(scores.argmax())
        if not scores[best] < np.inf:
            raise SamplingError("logits: not finite after penalties and biases")
    if scores[best] == -np.inf:
        raise SamplingError("logits: every token is masked")
    if params.temperature < TINY_TEMPERATURE:
        return best
    return draw(scores, scores[best], params, draw_uniform(params.seed, history.num_output))


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
        token_ids = largest_ids(logits, num_top)
        token_ids = token_ids[np.argsort(-logits[token_ids], kind="stable")]
        top = tuple((int(one), float(logits[one]) - base) for one in token_ids)
    return OutputToken(token_id, float(logits[token_id]) - base, top)


# ---------------------------------------------------------------- bias, penalties, masks


def _changed_ids(
    params: SamplingParams, history: History, banned: list[int], vocab_size: int
) -> Ids | None:
    """The tokens that `_change` changes. None is none."""
    if not (banned or params.logit_bias or history.tracks):
        return None
    biased = [token_id for token_id, _ in params.logit_bias]
    for token_id in biased:
        if not 0 <= token_id < vocab_size:
            raise SamplingError(f"logit_bias: token {token_id}, expected 0 to {vocab_size - 1}")
    changed = np.array(biased + banned, np.int64)
    return np.concatenate([changed, history.seen()[0]]) if history.tracks else changed


def _change(scores: Logits, params: SamplingParams, history: History, banned: list[int]) -> None:
    for token_id, bias in params.logit_bias:
        scores[token_id] += np.float32(bias)
    if history.tracks:
        _penalise(scores, params, history)
    scores[banned] = -np.inf


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


def _banned(
    params: SamplingParams, history: History, end_token_ids: Sequence[int], vocab_size: int
) -> list[int]:
    banned: list[int] = []
    for word in params.bad_words:
        if word and history.ends_with(word[:-1]):
            banned.append(word[-1])
    if history.num_output < params.min_tokens:
        banned += params.stop_token_ids
        banned += end_token_ids
    return [token_id for token_id in banned if 0 <= token_id < vocab_size]


def _masked(scores: Logits, params: SamplingParams, allowed: Mask | None) -> Logits:
    """A copy, in the memory that `draw` may use for it."""
    masked = row_room.of(len(scores))
    masked.fill(-np.inf)
    if params.allowed_token_ids:
        kept = np.array([each for each in params.allowed_token_ids if 0 <= each < len(scores)])
        if allowed is not None:
            kept = kept[allowed[kept]]
        masked[kept] = scores[kept]
    else:
        np.copyto(masked, scores, where=allowed)
    return masked
