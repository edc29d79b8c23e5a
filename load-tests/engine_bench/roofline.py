"""Our engine beside what the machine can do: decode and prefill as shares of the roofs.

A decode step reads each weight once (of experts those that are hit) and the context's KV. Its roof
is the time that this takes from memory, or that its operations take, whichever is longer. Prefill's
roof is the operations of products and of causal attention at the speed of a large matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine_bench import models
from engine_bench.bench import Bench, median
from engine_bench.serving import NotHere, Side

NUM_STEPS = 12
PREFILL_TOKENS = 2048
PREFILL_STEP_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    num_sequences: int
    context: int


BATCH_1 = Case("decode, batch 1, context 128", 1, 128)
LONG = Case("decode, batch 1, context 4096", 1, 4096)
BATCH_32 = Case("decode, batch 32, context 128", 32, 128)
CASES = {
    "llama-3.2-1b": (BATCH_1, LONG),
    "qwen3-0.6b": (BATCH_1, LONG, BATCH_32),
    "moe-0.5b": (BATCH_1, BATCH_32),
    models.DEMO: (BATCH_1, LONG, BATCH_32),
}
"""Fewer where a case would take its time and say nothing new."""


def measure(bench: Bench) -> dict[str, object]:
    found: dict[str, object] = {}
    for model, cases in CASES.items():
        try:
            found[model] = dict(_model(bench, model, cases))
        except NotHere as error:
            found[model] = {"skipped": str(error)}
    return found


def _model(bench: Bench, model: str, cases: tuple[Case, ...]) -> Iterator[tuple[str, object]]:
    num_tokens = 32 * 128 + 32 * NUM_STEPS * (bench.num_rounds + 1) + 4096
    with ExitStack() as opened:
        roofs = opened.enter_context(bench.roofs())
        engine = partial(
            bench.banyan, model, num_tokens=num_tokens, step_tokens=PREFILL_STEP_TOKENS
        )
        sides = {
            "helper": opened.enter_context(engine(helper=True)),
            "plain": opened.enter_context(engine(helper=False)),
        }
        described = {name: side.ask("describe") for name, side in sides.items()}
        yield "engine", described
        for case in cases:
            yield case.name, _decode(bench, model, case, roofs, sides, described)
        yield f"prefill, {PREFILL_TOKENS} tokens", _prefill(bench, model, roofs, sides, described)


def _decode(
    bench: Bench,
    model: str,
    case: Case,
    roofs: Side,
    sides: dict[str, Side],
    described: dict[str, Any],
) -> dict[str, object]:
    cost = models.cost(models.folder(model))
    asked: dict[str, Callable[[], float]] = {"read": partial(roofs.ask, "read")}
    for dtype in sorted({str(each["dtype"]) for each in described.values()}):
        asked[f"matmul_{dtype}"] = partial(roofs.ask, "matmul", dtype=dtype)
    for name, side in sides.items():
        asked[name] = partial(_step_s, side, case)
    taken = bench.rounds(asked)
    figures: dict[str, object] = {"rounds": taken, "read_bytes_per_s": median(taken["read"])}
    for name in sides:
        engine = described[name]
        weights = cost.params_read(case.num_sequences) * engine["param_bytes"]
        num_contexts = case.num_sequences * case.context
        num_bytes = weights + num_contexts * engine["kv_token_bytes"]
        flops = cost.flops(case.num_sequences, num_contexts, case.num_sequences)
        roof_s = max(
            num_bytes / median(taken["read"]),
            flops / median(taken[f"matmul_{engine['dtype']}"]),
        )
        step_s = median(taken[name])
        figures[name] = {
            "step_ms": round(step_s * 1e3, 3),
            "tokens_per_s": round(case.num_sequences / step_s, 1),
            "read_mb": round(num_bytes / 1e6, 1),
            "share": round(roof_s / step_s, 3),
        }
    return figures


def _step_s(side: Side, case: Case) -> float:
    asked = {"num_sequences": case.num_sequences, "context": case.context}
    step_s: float = side.ask("decode", num_steps=NUM_STEPS, **asked)["step_s"]
    return step_s


def _prefill(
    bench: Bench, model: str, roofs: Side, sides: dict[str, Side], described: dict[str, Any]
) -> dict[str, object]:
    """With the helper only: large products are torch's either way."""
    cost, dtype = models.cost(models.folder(model)), described["helper"]["dtype"]
    taken = bench.rounds(
        {
            "matmul": lambda: roofs.ask("matmul", dtype=dtype),
            "helper": lambda: sides["helper"].ask("first_token", num_tokens=PREFILL_TOKENS),
        }
    )
    elapsed_s, flops = median(taken["helper"]), cost.prefill_flops(PREFILL_TOKENS)
    return {
        "rounds": taken,
        "matmul_flops_per_s": median(taken["matmul"]),
        "helper": {
            "tokens_per_s": round(PREFILL_TOKENS / elapsed_s, 1),
            "share": round(flops / median(taken["matmul"]) / elapsed_s, 3),
        },
    }
