"""Which tokens a sequence has seen, kept so that a step costs no look back over its length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from banyan_core.types import SamplingParams

Ids = NDArray[np.int64]


class History:
    """The output so far; and, if a penalty asks for it, how often each token seen is in it."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int],
    ) -> None:
        repetition = params.repetition_penalty != 1.0
        self.tracks = repetition or bool(params.presence_penalty or params.frequency_penalty)
        self._output: list[int] = []
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.int64)
        for token_id in prompt_token_ids if repetition else ():
            self._place(token_id)
        for token_id in output_token_ids:
            self.add(token_id)

    @property
    def num_output(self) -> int:
        """The index of the next token."""
        return len(self._output)

    def add(self, token_id: int) -> None:
        """The next token of the output."""
        self._output.append(token_id)
        if self.tracks:
            self._counts[self._place(token_id)] += 1

    def seen(self) -> tuple[Ids, Ids]:
        """Distinct tokens, and how often each is in the output."""
        num_seen = len(self._places)
        return self._ids[:num_seen], self._counts[:num_seen]

    def ends_with(self, token_ids: Sequence[int]) -> bool:
        """Whether these are the last tokens of the output."""
        start = len(self._output) - len(token_ids)
        return start >= 0 and self._output[start:] == list(token_ids)

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.append(self._ids, np.zeros_like(self._ids))
            self._counts = np.append(self._counts, np.zeros_like(self._counts))
        self._ids[place] = token_id
        return place
