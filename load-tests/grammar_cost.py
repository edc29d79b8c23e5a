"""What a grammar costs per token: the mask and the step, for a small vocabulary and a large one.

    python load-tests/grammar_cost.py

CPU time of one thread. The large vocabulary is made here: words of random letters in the lengths
that tokenizers of 152,000 tokens have. The values walked through are a short object, and an array
with long free strings, where nearly every token of the vocabulary is allowed.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from banyan_core.types import Grammar, GrammarKind
from banyan_text.grammar import Grammars
from banyan_text.tokenizer import ByteTokenizer

VOCAB_SIZES = (1_280, 152_000)
NUM_ROUNDS = 200
SCHEMAS = {
    "object": (
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer"},
                "tags": {"type": "array", "items": {"enum": ["alpha", "beta"]}},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        },
        '{"name": "Bob Miller", "age": 33, "tags": ["alpha", "beta"]}',
    ),
    "strings": (
        {"type": "array", "items": {"type": "string"}},
        json.dumps(["the quick brown fox jumps over the lazy dog"] * 4),
    ),
}
T = TypeVar("T")


class MadeTokenizer(ByteTokenizer):
    """Bytes, words, words after a blank; the last id is the end token. Longest token first."""

    special_ids: Mapping[str, int] = {}
    token_bytes_max = 13

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        draw = random.Random(1)
        pieces = dict.fromkeys(bytes([byte]) for byte in range(256))
        while len(pieces) < vocab_size - 1:
            length = min(12, max(2, round(draw.gauss(5.5, 2.5))))
            word = "".join(draw.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=length))
            pieces[(" " * (draw.random() < 0.5) + word).encode()] = None
        self._pieces = [*pieces, b""]
        self._ids = {piece: token_id for token_id, piece in enumerate(pieces)}

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def encode(self, text: str, add_special: bool) -> list[int]:
        data, token_ids = text.encode(), []
        while data:
            size = next(n for n in range(self.token_bytes_max, 0, -1) if data[:n] in self._ids)
            token_ids.append(self._ids[data[:size]])
            data = data[size:]
        return token_ids


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.thread_time_ns()
    result = work()
    return result, (time.thread_time_ns() - started) / 1e3


def measure(grammars: Grammars, tokenizer: MadeTokenizer, grammar: Grammar, value: str) -> str:
    """Masks and steps of one value, many times over, as one line."""
    _, compile_us = timed(partial(grammars.check, grammar))
    token_ids = tokenizer.encode(value, add_special=False)
    row = memoryview(bytearray(-(-tokenizer.vocab_size // 32) * 4)).cast("I")
    masks: list[float] = []
    steps: list[float] = []
    for _ in range(NUM_ROUNDS):
        state = grammars.open(grammar, ())
        for token_id in token_ids:
            masks.append(timed(partial(state.fill, row))[1])
            steps.append(timed(partial(state.advance, [token_id]))[1])
    tail = statistics.quantiles(masks, n=100)[98]
    mean = statistics.mean(masks) + statistics.mean(steps)
    return (
        f"compile {compile_us / 1e3:5.1f} ms   mask median {statistics.median(masks):6.1f} us, "
        f"p99 {tail:6.1f}, worst {max(masks):7.1f}   with the step, mean {mean:6.1f} us a token"
    )


def main() -> None:
    for vocab_size in VOCAB_SIZES:
        tokenizer = MadeTokenizer(vocab_size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grammars, build_us = timed(partial(Grammars, tokenizer, (vocab_size - 1,)))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = f"{(after - before) // 1024} MB"
        print(f"{vocab_size:,} tokens: built in {build_us / 1e3:.0f} ms, {size}")
        for kind, (schema, value) in SCHEMAS.items():
            grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
            print(f"  {kind:8s}{measure(grammars, tokenizer, grammar, value)}")


if __name__ == "__main__":
    main()
