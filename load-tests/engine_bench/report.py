"""Results as files, and the table of the engine's MEASURED.md that is made of them.

One file per measure, `results/DATE-engine-MEASURE.json`; the newest of each counts. Between the
marks nobody writes by hand: `make bench-engine` does, or `bench_engine.py --only-tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import result_table
from result_table import RESULTS, Figures, ResultTable, Row

PAGE = RESULTS.parents[1] / "libs" / "engine" / "MEASURED.md"
SHARE_AIMS = {"batch 1": "0.85 with the helper, 0.7 without", "batch 32": "0.6"}
PREFILL_AIM = "0.65"

TABLE = ResultTable("engine", lambda result: _machine_and_rounds(result))
BEGIN, END = TABLE.begin, result_table.END
write, newest, insert = TABLE.write, TABLE.newest, TABLE.insert


def table(results: Mapping[str, Figures]) -> str:
    return TABLE.table(results, ROWS)


def _machine_and_rounds(result: Figures) -> str:
    machine = result["machine"]
    flags = ", ".join(machine["flags"]) or "no wide vectors"
    medians = f"medians of {result['num_rounds']}"
    return f"{machine['num_cores']} cores of {machine['processor']} ({flags}), {medians}"


def write_table() -> None:
    PAGE.write_text(insert(PAGE.read_text(), table(newest())))


# ---------------------------------------------------------------- rows


def _roofline(figures: Figures) -> Iterator[Row]:
    for model, cases in figures.items():
        if "skipped" in cases:
            yield (f"{model}, shares of the roofs", _not_measured(cases), "stated")
            continue
        for name, case in cases.items():
            if name == "engine":
                continue
            sides = [side for side in ("helper", "plain") if side in case]
            words = {"helper": "with the helper", "plain": "without"}
            measured = "; ".join(
                f"{words[side]} **{case[side]['share']:.2f}** "
                f"({case[side]['tokens_per_s']:,.0f} tokens/s)"
                for side in sides
            )
            aim = PREFILL_AIM
            if name.startswith("decode"):
                aim = next(aim for batch, aim in SHARE_AIMS.items() if f"{batch}," in name)
            yield f"{model}, {name}: share of the roof", f"{measured}; {_roof(case)}", aim


def _roof(case: Figures) -> str:
    if "read_bytes_per_s" in case:
        return f"roof {case['read_bytes_per_s'] / 1e9:.1f} GB/s"
    return f"roof {case['matmul_flops_per_s'] / 1e9:,.0f} GFLOP/s"


def _transformers(figures: Figures) -> Iterator[Row]:
    what = {
        "decode": ("a token of `generate`, batch 1", "1.3"),
        "mixed": ("16 mixed requests, continuous batching", "3"),
    }
    yield from _peers("transformers", figures, what)


def _llama_cpp(figures: Figures) -> Iterator[Row]:
    for model, formats in figures.items():
        if "skipped" in formats:
            yield f"llama.cpp, {model}", _not_measured(formats), "stated"
            continue
        for kind, found in formats.items():
            decode_aim = "1.0" if kind == "BF16" else "0.8"
            what = {
                "decode": (f"{kind}, decode, batch 1", decode_aim),
                "prefill": (f"{kind}, prefill of 2,048", "1.5"),
            }
            yield from _peers("llama.cpp", {model: found}, what)


def _peers(peer: str, figures: Figures, what: Mapping[str, tuple[str, str]]) -> Iterator[Row]:
    for model, found in figures.items():
        if "skipped" in found:
            yield f"beside {peer}, {model}", _not_measured(found), "stated"
            continue
        for name, (words, aim) in what.items():
            if name in found:
                one = found[name]
                yield (
                    f"beside {peer}, {model}: {words}",
                    f"**{one['ratio']:.2f}×** ({_time(one['ours_s'])} against "
                    f"{_time(one['theirs_s'])})",
                    f"{aim}×",
                )


def _prefix(figures: Figures) -> Iterator[Row]:
    yield (
        f"{figures['model']}, prompt of {figures['num_tokens']:,} tokens, all cached: "
        "first token beside a cold one",
        f"**{figures['share']:.1%}** ({_time(figures['hit_s'])} of {_time(figures['cold_s'])})",
        "5 %",
    )


def _plan(figures: Figures) -> Iterator[Row]:
    yield (
        f"plan + commit, CPU per step at batch {figures['num_sequences']}",
        f"**{figures['all_ms']:.2f} ms** (batch 1: {figures['one_ms']:.2f} ms)",
        f"{figures['aim_ms']:.2f} ms",
    )


def _sampling(figures: Figures) -> Iterator[Row]:
    for name, kind in figures["kinds"].items():
        if name != "one pass":
            without = kind.get("passes_without")  # measured since 2026-11-29
            yield (
                f"sampling 64 rows of 151,936 logits, {name}: CPU, in passes over them",
                f"**{kind['passes']:.1f}** ({kind['ms']:.0f} ms)"
                + (f"; without the helper {without:.1f}" if without else ""),
                "3",
            )


def _grammar(figures: Figures) -> Iterator[Row]:
    for model, found in figures.items():
        what = f"{model}, a token under a JSON schema beside free text"
        if "skipped" in found:
            yield what, _not_measured(found), "5 %"
            continue
        yield (
            what,
            f"**{found['slower']:+.1%}** ({found['schema_ms']:.1f} ms, {found['free_ms']:.1f} ms)",
            "5 %",
        )


def _memory(figures: Figures) -> Iterator[Row]:
    for model, found in figures.items():
        what = f"{model}, peak memory over weights and KV pool"
        if "skipped" in found:
            yield what, _not_measured(found), "stated"
            continue
        yield (
            what,
            f"**{found['over_mb']:,} MB** ({found['peak_mb']:,} MB, of which weights "
            f"{found['weights_mb']:,}, pool {found['kv_pool_mb']:,})",
            f"{found['aim_mb']} MB",
        )


def _not_measured(found: Figures) -> str:
    reason = " ".join(str(found["skipped"]).replace("|", "/").split())
    return f"not measured: {reason[:200]}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


ROWS: dict[str, Callable[[Figures], Iterator[Row]]] = {
    "roofline": _roofline,
    "transformers": _transformers,
    "llama_cpp": _llama_cpp,
    "prefix": _prefix,
    "plan": _plan,
    "sampling": _sampling,
    "grammar": _grammar,
    "memory": _memory,
}
