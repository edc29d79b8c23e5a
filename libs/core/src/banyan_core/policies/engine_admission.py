"""Whether the next waiting sequence gets its blocks now.

To admit too much costs preemptions, whose work is done again; to admit too little leaves the pool
idle. A policy sees what each sequence holds and may still grow to, never the future.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly over [0, 1): draws without randomness."""


class Growing(NamedTuple):
    """One sequence: tokens it has, output tokens among them, and at most to come."""

    num_tokens: int
    num_output: int
    num_left: int


class AdmissionView(NamedTuple):
    """`num_new_blocks` are for the candidate's tokens, cached ones not counted.

    `lengths` are output lengths of sequences that ended lately, sorted.
    """

    block_size: int
    num_blocks: int
    num_available_blocks: int
    num_new_blocks: int
    candidate: Growing
    running: Sequence[Growing]
    lengths: Sequence[int]


class OutputLengths:
    """Output lengths of the sequences that ended last, sorted at all times."""

    def __init__(self, num_max: int = 1000) -> None:
        self._num_max = num_max
        self._in_order: deque[int] = deque()
        self.sorted: list[int] = []

    def add(self, length: int) -> None:
        self._in_order.append(length)
        insort(self.sorted, length)
        if len(self._in_order) > self._num_max:
            del self.sorted[bisect_left(self.sorted, self._in_order.popleft())]


class EngineAdmissionPolicy(Protocol):
    def admits(self, view: AdmissionView) -> bool: ...


@dataclass(frozen=True, slots=True)
class Watermark:
    """Blocks for all tokens known now, and one more for each that runs already."""

    def admits(self, view: AdmissionView) -> bool:
        return view.num_available_blocks >= view.num_new_blocks + len(view.running)


@dataclass(frozen=True, slots=True)
class PastFuture:
    """Predicts how long each will become, and admits if the peak fits (arXiv 2507.10150).

    A sequence with g output tokens ends like one of those that lately ended later than g. Memory
    peaks just before one ends; `num_draws` times lengths are drawn, and each peak must fit into
    the pool less its `margin`. Until `min_lengths` are known it is `Watermark`.
    """

    margin: float = 0.05
    num_draws: int = 5
    min_lengths: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin: expected 0 to 1, got {self.margin}")
        if self.num_draws < 1:
            raise ValueError(f"num_draws: expected 1 or more, got {self.num_draws}")

    def admits(self, view: AdmissionView) -> bool:
        if not Watermark().admits(view):
            return False
        if len(view.lengths) < self.min_lengths or not view.running:
            return True
        room = view.num_available_blocks - view.num_new_blocks - self.margin * view.num_blocks
        return all(
            _most_needed(view, draw / self.num_draws) <= room for draw in range(self.num_draws)
        )


def _most_needed(view: AdmissionView, shift: float) -> float:
    """Blocks needed at the peak beyond those that all of them hold now."""
    ends = sorted(
        (_draw_left(one, view.lengths, (place * _GOLDEN + shift) % 1.0), one.num_tokens)
        for place, one in enumerate((view.candidate, *view.running), 1)
    )
    most = num_freed_tokens = 0
    for place, (num_left, num_tokens) in enumerate(ends):
        most = max(most, (len(ends) - place) * num_left - num_freed_tokens)
        num_freed_tokens += num_tokens + num_left
    return most / view.block_size


def _draw_left(one: Growing, lengths: Sequence[int], share: float) -> int:
    """Tokens still to come, if it ends like one that got further than it is."""
    first = bisect_right(lengths, one.num_output)
    if first == len(lengths):
        return one.num_left
    length = lengths[first + int(share * (len(lengths) - first))]
    return min(length - one.num_output, one.num_left)
