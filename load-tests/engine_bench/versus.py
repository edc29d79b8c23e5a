"""Our engine beside others that compute on CPUs: transformers and llama.cpp, the same weights.

Before anything is timed each side says how a prompt goes on, greedily: peers that compute something
else would be no peers. Quantised formats are not compared so, because each rounds in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from engine_bench.bench import Bench, median
from engine_bench.serving import NotHere, Side

NUM_STEPS = 16
CONTEXT = 128
PREFILL_TOKENS = 2048
PROMPT = list(range(300, 340))
NUM_COMPARED = 8
MIXED = [(16 + 7 * number, 8 + number * 5 % 17) for number in range(16)]
"""Prompt and output tokens of 16 requests: 1,096 and 246 in all."""
MODELS = ("qwen3-0.6b", "llama-3.2-1b")
FORMATS = {"BF16": "auto", "Q8_0": "int8", "Q4_0": "int4"}
"""llama.cpp's, and ours beside it."""

Sides = Mapping[str, Side]


def transformers(bench: Bench) -> dict[str, object]:
    return _each_model(bench, _transformers)


def llama_cpp(bench: Bench) -> dict[str, object]:
    return _each_model(bench, _llama_cpp)


def _each_model(
    bench: Bench, measure: Callable[[Bench, str], dict[str, object]]
) -> dict[str, object]:
    found: dict[str, object] = {}
    for model in MODELS:
        try:
            found[model] = measure(bench, model)
        except NotHere as error:
            found[model] = {"skipped": str(error)}
    return found


def _transformers(bench: Bench, model: str) -> dict[str, object]:
    with (
        bench.banyan(model, num_tokens=8192) as ours,
        bench.transformers(model) as theirs,
    ):
        sides = {"banyan": ours, "transformers": theirs}
        found: dict[str, object] = {
            "same_tokens": _same_tokens(sides),
            "decode": _ratio(bench, sides, _decode),
        }
        if model == MODELS[0]:
            found["mixed"] = _ratio(bench, sides, _mixed)
    return found


def _llama_cpp(bench: Bench, model: str) -> dict[str, object]:
    found: dict[str, object] = {}
    # Quantised weights of the smaller model only, to keep the run short.
    formats = FORMATS if model == MODELS[0] else {"BF16": FORMATS["BF16"]}
    for theirs, ours in formats.items():
        try:
            found[theirs] = _format(bench, model, theirs, ours)
        except NotHere as error:
            found[theirs] = {"skipped": str(error)}
    return found


def _format(bench: Bench, model: str, kind: str, weights: str) -> dict[str, object]:
    with ExitStack() as opened:
        ours = bench.banyan(model, num_tokens=8192, weights=weights, step_tokens=PREFILL_TOKENS)
        sides = {
            "banyan": opened.enter_context(ours),
            "llama.cpp": opened.enter_context(bench.llama_cpp(model, kind)),
        }
        found: dict[str, object] = {"decode": _ratio(bench, sides, _decode)}
        if kind == "BF16":
            found["same_tokens"] = _same_tokens(sides)
            found["prefill"] = _ratio(bench, sides, _prefill)
    return found


def _same_tokens(sides: Sides) -> int:
    """How many of the first tokens agree."""
    one, other = (
        side.ask("greedy", token_ids=PROMPT, num_tokens=NUM_COMPARED) for side in sides.values()
    )
    pairs = zip(one, other, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), NUM_COMPARED)


def _ratio(bench: Bench, sides: Sides, ask: Callable[[Side], float]) -> dict[str, Any]:
    """Seconds of each, and how many times as fast as the other ours is."""
    taken = bench.rounds({name: partial(ask, side) for name, side in sides.items()})
    ours, theirs = (median(values) for values in taken.values())
    return {"rounds": taken, "ours_s": ours, "theirs_s": theirs, "ratio": round(theirs / ours, 2)}


def _decode(side: Side) -> float:
    own: dict[str, int] = {"num_sequences": 1} if side.name == "banyan_side" else {}
    step_s: float = side.ask("decode", context=CONTEXT, num_steps=NUM_STEPS, **own)["step_s"]
    return step_s


def _prefill(side: Side) -> float:
    elapsed_s: float = side.ask("first_token", num_tokens=PREFILL_TOKENS)
    return elapsed_s


def _mixed(side: Side) -> float:
    answer = side.ask("requests", lengths=MIXED)
    num_output = sum(number for _, number in MIXED)
    if answer["num_output"] != num_output:
        raise NotHere(f"{side.name} gave {answer['num_output']} tokens, expected {num_output}")
    elapsed_s: float = answer["s"]
    return elapsed_s
