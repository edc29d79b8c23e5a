"""Our sampler as a side, with logits of its own: no model is that quick to give so many rows.

python -m engine_bench.sampling_side
"""

from __future__ import annotations

import time

import numpy as np

from banyan_core.types import SamplingParams
from banyan_engine.history import History
from banyan_engine.kernels.native import loader
from banyan_engine.sampler import sample
from engine_bench.serving import serve

NUM_ROWS = 64
VOCAB = 151_936
SEEN = range(100, 600)
HELPER_TIMEOUT_S = 300.0


class Sampler:
    """Answers in seconds of CPU for all rows."""

    def __init__(self) -> None:
        loader.wait(HELPER_TIMEOUT_S)
        rng = np.random.default_rng(1)
        self._logits = rng.normal(0, 3, (NUM_ROWS, VOCAB)).astype(np.float32)

    def one_pass(self) -> float:
        """Reads every logit once, to find the largest."""
        began = time.process_time()
        for row in self._logits:
            row.argmax()
        return time.process_time() - began

    def sample(self, params: dict[str, float]) -> float:
        """A token for each row, whose sequences have SEEN some tokens, a tenth of them output."""
        sampling = SamplingParams(**params)  # type: ignore[arg-type]
        histories = [History(sampling, SEEN, SEEN[:50]) for _ in self._logits]
        began = time.process_time()
        for row, history in zip(self._logits, histories, strict=True):
            sample(row, sampling, history, ())
        return time.process_time() - began


if __name__ == "__main__":
    side = Sampler()
    serve({"one_pass": side.one_pass, "sample": side.sample})
