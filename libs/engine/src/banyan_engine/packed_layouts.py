"""The layouts in which checkpoints pack their matrices, and their way into the engine's formats.

Pure functions of one matrix. Each layout gives the same three things: whole numbers [out, in], a
scale [out, groups], and zero points [out, groups] where there are any; a weight is then
(number - zero) * scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from banyan_engine.kernels import native
from banyan_engine.linear import Dense, Int4, Int8, Weight

_AWQ_COLUMNS = [0, 4, 1, 5, 2, 6, 3, 7]
"""In which nibble of a word AWQ keeps each of eight neighbouring columns."""
_NO_ZERO = 8
"""The number that stands for zero where a layout has no zero points."""


def words_to_bytes(words: Tensor) -> Tensor:
    """int32 [rows, n] to uint8 [rows, 4 n], the lowest byte of a word first."""
    return words.contiguous().view(torch.uint8)


def words_to_nibbles(words: Tensor) -> Tensor:
    """int32 [rows, n] to uint8 [rows, 8 n], the lowest nibble of a word first."""
    pairs = words_to_bytes(words)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)


def awq_nibbles(words: Tensor) -> Tensor:
    """AWQ's int32 [rows, n] to uint8 [rows, 8 n] in the order of its columns."""
    nibbles = words_to_nibbles(words).view(len(words), -1, 8)
    return nibbles[..., _AWQ_COLUMNS].flatten(1)


def int4_of(numbers: Tensor, scales: Tensor, zeros: Tensor | None) -> Int4:
    """Nibbles 0 to 15 [out, in] with scales and zeros [out, groups] in the engine's int4.

    Scales are rounded to bfloat16; of those the result is exact, in groups of any size.
    """
    num_out, num_in = numbers.shape
    padded = F.pad(numbers, (0, -num_in % native.STEP), value=_NO_ZERO)
    halves = padded.contiguous().view(num_out, -1, 2, native.STEP // 2)
    packed = halves[:, :, 0] | (halves[:, :, 1] << 4)
    scales = scales.to(torch.bfloat16).contiguous()
    repeats = -(-packed.shape[1] // scales.shape[1])
    offsets = None
    if zeros is not None and bool((zeros != _NO_ZERO).any()):
        offsets = ((_NO_ZERO - zeros.to(torch.float32)) * scales).contiguous()
    return Int4(numbers.shape, packed, scales.repeat_interleave(repeats, dim=1), offsets)


def int8_of(numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Weight:
    """Bytes plus 128 [out, in] with scales [out, groups].

    The engine's int8 has one scale per output channel. Several cannot be kept there, and the
    matrix becomes numbers of `dtype`.
    """
    signed = (numbers ^ 128).view(torch.int8)
    scales = scales.to(torch.float32, copy=True)
    if scales.shape[1] == 1:
        padded = F.pad(signed, (0, -signed.shape[1] % native.STEP))
        return Int8(signed.shape, padded, scales.flatten())
    grouped = signed.view(*scales.shape, -1) * scales[:, :, None]
    return Dense(grouped.flatten(1).to(dtype))


def stacked(parts: list[Weight]) -> Weight:
    """Weights of one kind, one below the other. Raises TypeError for different kinds."""
    if len(parts) == 1:
        return parts[0]
    shape = torch.Size((sum(part.shape[0] for part in parts), parts[0].shape[1]))
    int4 = [part for part in parts if isinstance(part, Int4)]
    if len(int4) == len(parts):
        packed = torch.cat([part.packed for part in int4])
        return Int4(shape, packed, torch.cat([part.scales for part in int4]), _offsets(int4))
    int8 = [part for part in parts if isinstance(part, Int8)]
    if len(int8) == len(parts):
        packed = torch.cat([part.packed for part in int8])
        return Int8(shape, packed, torch.cat([part.scales for part in int8]))
    if all(isinstance(part, Dense) for part in parts):
        return Dense(torch.cat([part.matrix for part in parts if isinstance(part, Dense)]))
    raise TypeError("weights of different kinds")


def _offsets(parts: list[Int4]) -> Tensor | None:
    """None where no part has any; they have equally many groups, since one group size rules."""
    known = next((part.offsets for part in parts if part.offsets is not None), None)
    if known is None:
        return None
    return torch.cat(
        [
            known.new_zeros(part.shape[0], known.shape[1]) if part.offsets is None else part.offsets
            for part in parts
        ]
    )
