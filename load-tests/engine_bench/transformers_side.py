"""transformers as a side: `generate`, and its continuous batching.

python -m engine_bench.transformers_side FOLDER NUM_THREADS
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from engine_bench.serving import serve

PAGE_TOKENS = 16
NUM_PAGES = 1024
BATCH_TOKENS = 512


class Clock:
    """A streamer that keeps when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        return


class Transformers:
    def __init__(self, folder: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self._model = model.eval()
        self._rng = random.Random(1)
        self._batching: Any = None

    def decode(self, context: int, num_steps: int) -> dict[str, float]:
        """Median time from a token to the next, of one `generate`."""
        clock = Clock()
        self._generate(self._random_prompt(context), num_steps + 1, clock)
        gaps = [after - before for before, after in pairwise(clock.times[1:])]
        return {"step_s": sorted(gaps)[len(gaps) // 2]}

    def first_token(self, num_tokens: int) -> float:
        began = time.perf_counter()
        self._generate(self._random_prompt(num_tokens), 1)
        return time.perf_counter() - began

    def greedy(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        return self._generate(list(token_ids), num_tokens)

    def requests(self, lengths: Sequence[tuple[int, int]]) -> dict[str, float]:
        """All at once through continuous batching, each with its own number of tokens."""
        if self._batching is None:
            self._batching = self._start_batching()
        prompts = [self._random_prompt(num_prompt) for num_prompt, _ in lengths]
        began = time.perf_counter()
        for prompt, (_, num_output) in zip(prompts, lengths, strict=True):
            self._batching.add_request(prompt, max_new_tokens=num_output)
        num_ended = num_tokens = 0
        while num_ended < len(prompts):
            result = self._batching.get_result(timeout=1.0)
            if result is None:
                assert self._batching.is_running(), "continuous batching has stopped"
            elif result.is_finished():
                num_ended += 1
                num_tokens += len(result.generated_tokens)
        return {"s": time.perf_counter() - began, "num_output": num_tokens}

    def _start_batching(self) -> Any:
        """Sized as our engine is: by itself it takes nine tenths of the machine's memory."""
        generation = _configuration(do_sample=False, eos_token_id=-1, pad_token_id=0)
        sizes = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS, num_blocks=NUM_PAGES, max_batch_tokens=BATCH_TOKENS
        )
        manager = self._model.init_continuous_batching(generation, sizes)
        manager.start()
        return manager

    def _random_prompt(self, num_tokens: int) -> list[int]:
        return self._rng.choices(range(300, 1200), k=num_tokens)

    def _generate(self, token_ids: list[int], num_tokens: int, streamer: Any = None) -> list[int]:
        ids = torch.tensor([token_ids])
        config = _configuration(
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer
        )
        return [int(each) for each in out[0][len(token_ids) :]]


def _configuration(**fields: Any) -> Any:
    kind: Any = GenerationConfig
    return kind(**fields)


if __name__ == "__main__":
    side = Transformers(sys.argv[1], int(sys.argv[2]))
    names = ("decode", "first_token", "greedy", "requests")
    serve({name: getattr(side, name) for name in names})
