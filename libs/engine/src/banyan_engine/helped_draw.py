"""Drawing with the compiled helper: the token that numpy would draw, or no answer.

Exponentials and sums round otherwise there than in numpy, and otherwise on each CPU. The helper
answers only where that cannot matter; `kernels/sampling.cpp` says what it takes to be sure.
"""

from __future__ import annotations

import ctypes
import threading

import numpy as np
from numpy.typing import NDArray

from banyan_core.types import SamplingParams
from banyan_engine.kernels import native

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]

MAX_LARGEST = 1024
"""Up to so many of the largest are found by the helper."""
_PADDING = 1024
"""What the helper may write behind a row's length."""


class _Room(threading.local):
    """The helper's memory for one row, kept for the next."""

    def __init__(self) -> None:
        self._num = -1

    def addresses(self, num: int) -> tuple[int, int, int, int]:
        """Of two rows of float32, one of int32, one of float64."""
        if num > self._num:
            length = num + _PADDING
            kinds = (np.float32, np.float32, np.int32, np.float64)
            self._arrays = [np.empty(length, kind) for kind in kinds]
            self._num = num
            part, heads, ids, sums = (int(array.ctypes.data) for array in self._arrays)
            self._addresses = part, heads, ids, sums
        return self._addresses

    def ids(self, num: int) -> Ids:
        return self._arrays[2][:num].astype(np.int64)


class _Row(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "part", "heads", "ids", "sums")),
        ("num", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("top_p", "min_p", "uniform")),
        *((name, ctypes.c_float) for name in ("largest", "temperature")),
    )


_room = _Room()


def draw(scores: Logits, largest: np.float32, params: SamplingParams, uniform: float) -> int | None:
    """The place in `scores`, by temperature, top-p and min-p; None: ask numpy."""
    helper = native.library()
    if helper is None or not scores.flags.c_contiguous:
        return None
    num = len(scores)
    row = _Row(
        _address(scores),
        *_room.addresses(num),
        num,
        params.top_p,
        params.min_p,
        uniform,
        largest,
        params.temperature,
    )
    place: int = helper.banyan_draw(ctypes.byref(row))
    return None if place < 0 else place


def largest_ids(values: Logits, num: int) -> Ids | None:
    """Ids of the `num` largest, of equals the lowest, in order of id; None: ask numpy."""
    helper = native.library()
    if helper is None or num > MAX_LARGEST or not values.flags.c_contiguous:
        return None
    part, _, ids, _ = _room.addresses(len(values))
    helper.banyan_largest(
        ctypes.c_void_p(_address(values)),
        ctypes.c_int64(len(values)),
        ctypes.c_int64(num),
        ctypes.c_void_p(part),
        ctypes.c_void_p(ids),
    )
    return _room.ids(num)


def _address(values: Logits) -> int:
    address: int = values.__array_interface__["data"][0]
    return address
