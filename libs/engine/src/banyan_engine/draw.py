"""From adjusted logits to a token: temperature, top-k, typical-p, top-p, min-p, the draw.

What numpy computes here is the definition, to the last bit. The compiled helper is asked first and
answers only where no rounding of its own can change the token (`helped_draw`), so a sequence draws
the same with and without it.

A row of 150,000 logits fits a core's cache and a batch of them does not: so rows go one by one,
in memory that stays, and no step sorts a vocabulary.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from banyan_core.types import SamplingParams
from banyan_engine import helped_draw

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

SUM_TOKENS = 512
"""Weights are summed in runs of so many, in single precision; the runs' sums in double."""
SORTED_TOKENS = 4096
"""Where a head ends is found by halving above, by sorting below."""


def draw(scores: Logits, largest: np.float32, params: SamplingParams, uniform: float) -> int:
    """The token at this share of the mass of scores [vocab], whose `largest` is finite."""
    ids: Ids | None = None  # None is all
    if 0 < params.top_k < len(scores):
        ids = largest_ids(scores, params.top_k)
        scores = scores[ids]
    if params.typical_p >= 1.0:
        place = helped_draw.draw(scores, largest, params, uniform)
        if place is not None:
            return place if ids is None else int(ids[place])
    weights = np.subtract(scores, largest, out=row_room.of(len(scores)))
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


def largest_ids(values: Logits, num: int) -> Ids:
    """Ids of the `num` largest, of equals the lowest, in order of id."""
    if num >= len(values):
        return np.arange(len(values))
    ids = helped_draw.largest_ids(values, num)
    if ids is not None:
        return ids
    return _down_to(values, np.partition(values, len(values) - num)[len(values) - num], num)


class _Room(threading.local):
    """Memory for one row at a time: new memory for each costs more than computing in it."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.float32)

    def of(self, num: int) -> Logits:
        if num > len(self._numbers):
            self._numbers = np.empty(num, np.float32)
        return self._numbers[:num]


row_room = _Room()


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


def _down_to(values: Logits, cut: np.float32, num: int) -> Ids:
    """Ids of the `num` largest, the last of which has the value `cut`."""
    ids = np.flatnonzero(values >= cut)
    if len(ids) > num:
        at_cut = np.flatnonzero(values[ids] == cut)
        ids = np.delete(ids, at_cut[len(at_cut) - (len(ids) - num) :])
    return ids


def _keep_nucleus(weights: Logits, share: float) -> None:
    """Set to zero what is not in the shortest head whose mass reaches the share; one stays."""
    cut, num_at_cut = _end_of_head(weights, share)
    at_cut = np.flatnonzero(weights == cut)
    np.multiply(weights, weights >= cut, out=weights)
    weights[at_cut[num_at_cut:]] = 0.0


def _end_of_head(weights: Logits, share: float) -> tuple[np.float32, int]:
    """The smallest weight of the head with this share of the mass, and how many of its equals
    belong to it.

    Halves what is in question until little is left to sort: the values need no ids for that.
    """
    wanted = share * _sums(weights)[-1]
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
