"""llama.cpp as a side, through llama-cpp-python, in its own environment.

python -m engine_bench.llama_cpp_side FILE.gguf NUM_THREADS
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from engine_bench.serving import serve

CONTEXT = 2560
BATCH_TOKENS = 512


class LlamaCpp:
    def __init__(self, path: str, num_threads: int) -> None:
        self._llm: Any = llama_cpp.Llama(
            model_path=path,
            n_ctx=CONTEXT,
            n_batch=BATCH_TOKENS,
            n_ubatch=BATCH_TOKENS,
            n_threads=num_threads,
            n_threads_batch=num_threads,
            flash_attn=True,
            verbose=False,
        )
        self._rng = random.Random(1)

    def decode(self, context: int, num_steps: int) -> dict[str, float]:
        self._start(self._random_prompt(context))
        times = []
        for _ in range(num_steps):
            began = time.perf_counter()
            self._llm.eval([self._best()])
            times.append(time.perf_counter() - began)
        return {"step_s": sorted(times)[len(times) // 2]}

    def first_token(self, num_tokens: int) -> float:
        prompt = self._random_prompt(num_tokens)
        began = time.perf_counter()
        self._start(prompt)
        self._best()
        return time.perf_counter() - began

    def greedy(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        self._start(list(token_ids))
        found = [self._best()]
        while len(found) < num_tokens:
            self._llm.eval([found[-1]])
            found.append(self._best())
        return found

    def _start(self, token_ids: list[int]) -> None:
        self._llm.reset()
        self._llm.eval(token_ids)

    def _best(self) -> int:
        """The likeliest token after the last one."""
        pointer = llama_cpp.llama_get_logits_ith(self._llm.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(pointer, shape=(self._llm.n_vocab(),))))

    def _random_prompt(self, num_tokens: int) -> list[int]:
        return self._rng.choices(range(300, 1200), k=num_tokens)


if __name__ == "__main__":
    side = LlamaCpp(sys.argv[1], int(sys.argv[2]))
    serve({name: getattr(side, name) for name in ("decode", "first_token", "greedy")})
