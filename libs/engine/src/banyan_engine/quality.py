"""What each format of weights and KV costs in quality: `python -m banyan_engine.quality`.

The demo model answers recall prompts of about 1,000 tokens that it never saw. Each format computes
the same prompts with their true answers; at every position its distribution of the next token is
compared with that of float32 (KL divergence), and an answer counts when all its tokens are the
likeliest. For a model with random weights (`--model FOLDER --random`) there are no answers, and
tokens are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from banyan_core.model_spec import kv_layout
from banyan_engine.demo import model_folder
from banyan_engine.demo.evaluate import EVALUATION_SEED, recall_pieces
from banyan_engine.flat_forward import flat_forward
from banyan_engine.model import Model
from banyan_engine.paged_kv import DTYPES, PagedKv
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.weights import load_weights

PROMPT_TOKENS = 1000
BLOCK_SIZE = 16
FORMATS: tuple[tuple[str, str | None, str], ...] = (
    ("float32", None, "float32"),
    ("bfloat16", None, "bfloat16"),
    ("bfloat16", None, "int8"),
    ("bfloat16", "int8", "bfloat16"),
    ("bfloat16", "int4", "bfloat16"),
    ("bfloat16", "int4", "int8"),
)
"""Type of computing, packing of weights, type of KV. The first is what others are held against."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, the last `num_answer` of which are an answer."""

    token_ids: tuple[int, ...]
    num_answer: int


class Format:
    """The model in one format, a prompt at a time."""

    def __init__(self, folder: Path, dtype: str, quantize: str | None, kv_dtype: str) -> None:
        self._spec = read_spec(folder)
        self._model = Model(self._spec, load_weights(folder, self._spec, DTYPES[dtype], quantize))
        self._kv_dtype = kv_dtype

    @torch.inference_mode()
    def log_probabilities(self, prompt: Prompt) -> Tensor:
        """Of the token after each position, [tokens, vocab]. The last tokens go one by one."""
        num_tokens = len(prompt.token_ids)
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        kv = PagedKv(kv_layout(self._spec, self._kv_dtype), num_blocks, BLOCK_SIZE)
        table, ids = torch.arange(num_blocks), torch.tensor(prompt.token_ids)
        first = num_tokens - prompt.num_answer
        cuts = [0, *range(first, num_tokens + 1)]
        parts = [
            flat_forward(
                self._model, kv, [Span(ids[a:b], a, table, b - a)], on_layer=lambda layer: None
            )
            for a, b in pairwise(cuts)
        ]
        return torch.cat(parts).log_softmax(-1)


def prompts_of(folder: Path, count: int, *, is_random: bool) -> Iterator[Prompt]:
    """The same ones each time."""
    rng = Random(EVALUATION_SEED)
    vocab_size = read_spec(folder).vocab_size
    for _ in range(count):
        if is_random:
            yield Prompt(tuple(rng.randrange(vocab_size) for _ in range(PROMPT_TOKENS)), 8)
            continue
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pieces = [
            tokenizer.encode(piece.text, add_special_tokens=False).ids
            for piece in recall_pieces(rng, PROMPT_TOKENS)
        ]
        yield Prompt(tuple(token for piece in pieces for token in piece), len(pieces[-1]))


def _row(found: Sequence[Tensor], wanted: Sequence[Tensor], prompts: Sequence[Prompt]) -> str:
    divergence = torch.cat(
        [(right.exp() * (right - ours)).sum(-1) for ours, right in zip(found, wanted, strict=True)]
    )
    agree = torch.cat(
        [ours.argmax(-1) == right.argmax(-1) for ours, right in zip(found, wanted, strict=True)]
    )
    exact = sum(
        torch.equal(
            ours[-prompt.num_answer - 1 : -1].argmax(-1),
            torch.tensor(prompt.token_ids[-prompt.num_answer :]),
        )
        for ours, prompt in zip(found, prompts, strict=True)
    )
    return (
        f"{float(divergence.mean()):.1e} | {100 * float(agree.float().mean()):.2f} % | "
        f"{exact} of {len(prompts)}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m banyan_engine.quality")
    parser.add_argument("--model", type=Path, default=model_folder())
    parser.add_argument("--random", action="store_true", help="random tokens, no answers")
    parser.add_argument("--prompts", type=int, default=20)
    chosen = parser.parse_args()
    prompts = list(prompts_of(chosen.model, chosen.prompts, is_random=chosen.random))
    print("| computes in | weights | KV | KL | same likeliest token | exact answers |")
    print("|---|---|---|---:|---:|---:|")
    wanted: list[Tensor] = []
    for dtype, quantize, kv_dtype in FORMATS:
        form = Format(chosen.model, dtype, quantize, kv_dtype)
        found = [form.log_probabilities(prompt) for prompt in prompts]
        wanted = wanted or found
        row = _row(found, wanted, prompts)
        print(f"| {dtype} | {quantize or dtype} | {kv_dtype} | {row} |", flush=True)


if __name__ == "__main__":
    main()
