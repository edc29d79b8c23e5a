"""What our engine spends besides products: planning, sampling, grammars, memory; and what a hit
in the prefix cache saves."""

from __future__ import annotations

import json
from functools import partial

from engine_bench import models
from engine_bench.bench import Bench, median
from engine_bench.serving import NotHere, Side

PREFIX_TOKENS = 4096
PREFIX_MODEL = "qwen3-0.6b"
PLAN_SEQUENCES = 64
PLAN_STEPS = 24
SCHEMA_TOKENS = 48
ALLOWED_MB = 400
PLAIN = ", without the helper"
SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "penalties": {"temperature": 0.8, "presence_penalty": 0.5, "repetition_penalty": 1.1},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "names": {
            "type": "array",
            "items": {"type": "string", "minLength": 8, "maxLength": 40},
            "minItems": 30,
        },
    },
    "required": ["names"],
    "additionalProperties": False,
}


def prefix(bench: Bench) -> dict[str, object]:
    """The same prompt twice, the second time all of it but its last block cached."""
    with bench.banyan(PREFIX_MODEL, num_tokens=3 * PREFIX_TOKENS) as side:
        taken = bench.rounds(
            {
                "cold": lambda: side.ask("first_token", num_tokens=PREFIX_TOKENS),
                "hit": lambda: side.ask("first_token", num_tokens=PREFIX_TOKENS, again=True),
            }
        )
    cold_s, hit_s = median(taken["cold"]), median(taken["hit"])
    return {
        "model": PREFIX_MODEL,
        "num_tokens": PREFIX_TOKENS,
        "rounds": taken,
        "cold_s": cold_s,
        "hit_s": hit_s,
        "share": round(hit_s / cold_s, 4),
    }


def plan(bench: Bench) -> dict[str, object]:
    """CPU of the engine loop in a step, one and many sequences."""
    with bench.banyan(models.DEMO, num_tokens=PLAN_SEQUENCES * 1024) as side:
        taken = {
            str(number): bench.rounds({"plan": partial(_plan, side, number)})["plan"]
            for number in (1, PLAN_SEQUENCES)
        }
    one_ms, all_ms = (median(values) * 1e3 for values in taken.values())
    return {
        "rounds": taken,
        "one_ms": round(one_ms, 4),
        "all_ms": round(all_ms, 4),
        "num_sequences": PLAN_SEQUENCES,
        "aim_ms": round(0.2 + 0.005 * PLAN_SEQUENCES, 3),
    }


def _plan(side: Side, num_sequences: int) -> float:
    asked = {"num_sequences": num_sequences, "context": 128, "num_steps": PLAN_STEPS}
    plan_s: float = side.ask("decode", **asked)["plan_s"]
    return plan_s


def sampling(bench: Bench) -> dict[str, object]:
    """CPU for the rows of a batch, and as multiples of one pass that finds the largest; with the
    compiled helper, and without."""
    with bench.sampler(helper=True) as helped, bench.sampler(helper=False) as plain:
        taken = bench.rounds(
            {
                "one pass": partial(helped.ask, "one_pass"),
                **{
                    f"{name}{also}": partial(side.ask, "sample", params=params)
                    for name, params in SAMPLINGS.items()
                    for side, also in ((helped, ""), (plain, PLAIN))
                },
            }
        )
    pass_s = median(taken["one pass"])
    kinds = {
        name: {
            "ms": round(median(taken[name]) * 1e3, 2),
            "passes": round(median(taken[name]) / pass_s, 2),
            "passes_without": round(median(taken[name + PLAIN]) / pass_s, 2),
        }
        for name in SAMPLINGS
    }
    return {"rounds": taken, "kinds": kinds}


def grammar(bench: Bench) -> dict[str, object]:
    """A step under a JSON schema beside a step of free text, vocabularies of both sizes."""
    found: dict[str, object] = {}
    for model in ("qwen3-0.6b", models.DEMO):
        try:
            found[model] = _grammar(bench, model)
        except NotHere as error:
            found[model] = {"skipped": str(error)}
    return found


def _grammar(bench: Bench, model: str) -> dict[str, object]:
    schema = json.dumps(SCHEMA)
    with bench.banyan(model, num_tokens=4096) as side:
        taken = bench.rounds(
            {
                "free": lambda: side.ask("answer", schema="", num_tokens=SCHEMA_TOKENS),
                "schema": lambda: side.ask("answer", schema=schema, num_tokens=SCHEMA_TOKENS),
            }
        )
    free_s, schema_s = median(taken["free"]), median(taken["schema"])
    return {
        "rounds": taken,
        "free_ms": round(free_s * 1e3, 3),
        "schema_ms": round(schema_s * 1e3, 3),
        "slower": round(schema_s / free_s - 1, 4),
    }


def memory(bench: Bench) -> dict[str, object]:
    """The most that a process takes which loads a model, reads a prompt and decodes a batch.

    Once for each model: it is no matter of time.
    """
    found: dict[str, object] = {}
    for model in ("llama-3.2-1b", "qwen3-0.6b", "moe-0.5b"):
        try:
            with bench.banyan(model, num_tokens=16_384) as side:
                described = side.ask("describe")
                side.ask("first_token", num_tokens=1024)
                side.ask("decode", num_sequences=16, context=1000, num_steps=4)
                peak_mb = side.ask("memory")["peak_mb"]
        except NotHere as error:
            found[model] = {"skipped": str(error)}
            continue
        weights_mb = described["weight_bytes"] / 1e6
        pool_mb = described["kv_pool_bytes"] / 1e6
        found[model] = {
            "peak_mb": round(peak_mb),
            "weights_mb": round(weights_mb),
            "kv_pool_mb": round(pool_mb),
            "over_mb": round(peak_mb - weights_mb - pool_mb),
            "aim_mb": ALLOWED_MB,
        }
    return found
