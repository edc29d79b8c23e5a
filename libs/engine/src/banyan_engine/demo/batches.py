"""Turns generated text into tensors.

Two devices live here.  Answers are numbered, so that one can ask whether an
*answer* was right in full, not only its tokens.  And positions may leap at the
border of two sentences: a short text then shows the model the distances of a
long one, which costs nothing, while attention over a really long text does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from banyan_engine.demo.corpus import Piece
from banyan_engine.demo.tokenizer import PAD_ID


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of equal length; `answers` numbers the answer each token is part of, 0 for none."""

    ids: Tensor
    positions: Tensor
    answers: Tensor


@dataclass(slots=True)
class _Row:
    ids: list[int]
    answers: list[int]
    borders: list[int]


def _encode(tokenizer: Tokenizer, pieces: Iterable[Piece], length: int) -> _Row:
    """Encode pieces until the row is full; a piece that does not fit ends the row."""
    row = _Row([], [], [])
    num_answers = 0
    for piece in pieces:
        ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
        if len(row.ids) + len(ids) > length:
            break
        num_answers += piece.is_answer
        if not piece.is_answer:
            row.borders.append(len(row.ids))
        row.ids += ids
        row.answers += [num_answers if piece.is_answer else 0] * len(ids)
    missing = length - len(row.ids)
    row.ids += [PAD_ID] * missing
    row.answers += [0] * missing
    return row


def _positions(rng: Random, row: _Row, max_leap: int) -> list[int]:
    """Return positions that leap at some borders, by at most `max_leap` in total."""
    leaps = [0] * len(row.ids)
    left = int(max_leap * rng.random() ** 3)
    for border in rng.choices(row.borders, k=rng.randint(1, 8)):
        leap = rng.randint(0, left)
        leaps[border] += leap
        left -= leap
    positions, shift = [], 0
    for index, leap in enumerate(leaps):
        shift += leap
        positions.append(index + shift)
    return positions


def make_batch(
    tokenizer: Tokenizer,
    texts: Iterator[Iterable[Piece]],
    size: int,
    length: int,
    rng: Random,
    max_leap: int,
) -> Batch:
    """Return a batch of that many texts, cut or padded to the length."""
    rows = [_encode(tokenizer, next(texts), length) for _ in range(size)]
    positions = [_positions(rng, row, max_leap) for row in rows]
    return Batch(
        torch.tensor([row.ids for row in rows]),
        torch.tensor(positions),
        torch.tensor([row.answers for row in rows]),
    )
