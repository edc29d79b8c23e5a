"""Fills the grammar masks of a step.

A mask depends on the tokens before the step, which are known when it starts. A mask of an open
grammar takes some microseconds, less than handing it to another thread does: few of them are filled
at once. Opening a grammar may take long, and many masks add up: those are done on a thread beside
the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from banyan_core.masks import MaskSource, MaskState
from banyan_engine.sampler import Mask
from banyan_engine.sequence_state import SequenceState

FEW_STATES = 8
"""Up to so many open grammars are filled in place."""


class MaskFiller:
    """One step at a time: `start`, then `result`."""

    def __init__(self, source: MaskSource | None, vocab_size: int) -> None:
        self._source = source
        self._vocab_size = vocab_size
        self._pool: ThreadPoolExecutor | None = None
        self._filling: Future[list[Mask | None]] | None = None
        self._filled: list[Mask | None] | None = None

    def start(self, states: Sequence[SequenceState]) -> None:
        """Begin with the masks of those that have a grammar."""
        self._filling = self._filled = None
        asking = [state for state in states if state.sampling.grammar is not None]
        if not asking:
            return
        if len(asking) <= FEW_STATES and all(state.masks is not None for state in asking):
            self._filled = [self._mask(state) for state in states]
            return
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._filling = self._pool.submit(lambda: [self._mask(state) for state in states])

    def result(self, num_states: int) -> list[Mask | None]:
        """A mask for each state of `start`; None where there is no grammar, or a bad one."""
        if self._filling is not None:
            return self._filling.result()
        return self._filled or [None] * num_states

    def _mask(self, state: SequenceState) -> Mask | None:
        if state.sampling.grammar is None or state.failure:
            return None
        try:
            if state.masks is None:
                state.masks = self._open(state)
            words = np.zeros(-(-self._vocab_size // 32), dtype=np.uint32)
            state.masks.fill(words.data)
        except Exception as error:  # the guard around foreign code: only its sequence may fail
            state.failure = f"grammar: {error}"
            return None
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].view(np.bool_)

    def _open(self, state: SequenceState) -> MaskState:
        assert state.sampling.grammar is not None
        if self._source is None:
            raise ValueError("this engine was started without grammars")
        return self._source.open(state.sampling.grammar, state.output_token_ids)
