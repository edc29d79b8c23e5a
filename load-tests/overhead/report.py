"""Results as files, and the tables that are made of them.

One file per measure, `results/DATE-overhead-MEASURE.json`; the newest of each counts. A README has
the table between two marks, and nobody writes there by hand: `make bench-overhead` does, or
`python load-tests/bench_overhead.py --only-tables`, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import result_table
from result_table import RESULTS, Figures, ResultTable, Row

ROOT = RESULTS.parents[1]
READMES = (ROOT / "README.md", RESULTS.parent / "README.md")

TABLE = ResultTable("overhead", lambda result: _machine(result["machine"]))
BEGIN, END = TABLE.begin, result_table.END
write, newest, insert = TABLE.write, TABLE.newest, TABLE.insert


def table(results: Mapping[str, Figures]) -> str:
    return TABLE.table(results, _ROWS)


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['num_cores']} cores of {machine['processor']}"


def write_tables() -> list[Path]:
    """The READMEs that have the marks."""
    made = table(newest())
    changed = [path for path in READMES if BEGIN in path.read_text()]
    for path in changed:
        path.write_text(insert(path.read_text(), made))
    return changed


# ---------------------------------------------------------------- rows


def _gateway(figures: Figures) -> Iterator[Row]:
    ttft, token, request = (
        figures[name] for name in ("added_ttft", "cpu_per_token", "cpu_per_request")
    )
    yield (
        "first token, echo mesh against a bare FastAPI endpoint, 1 client, p50",
        f"{ttft['gateway_ms']['p50']:.1f} ms against {ttft['bare_ms']['p50']:.1f} ms: "
        f"{ttft['added_p50_ms']:.1f} ms added",
        "2 ms",
    )
    yield (
        f"CPU of the gateway per streamed token, {token['num_clients']} streams "
        f"of {token['tokens_per_answer']} tokens",
        f"{token['gateway_us']['mean']:.0f} µs; the bare endpoint "
        f"{token['bare_us']['mean']:.0f} µs in the same run",
        "30 µs",
    )
    yield (
        f"CPU of the gateway per request of one token, {request['num_clients']} clients",
        f"{request['gateway_us']['mean'] / 1e3:.2f} ms; the bare endpoint "
        f"{request['bare_us']['mean'] / 1e3:.2f} ms",
        "stated",
    )


def _place(figures: Figures) -> Iterator[Row]:
    yield (
        f"`Place`, {figures['num_workers']} workers, {figures['num_prompt_tokens']} prompt tokens",
        f"{figures['place_p50_ms']:.2f} ms in the median, {figures['place_p99_ms']:.2f} ms p99",
        "1 ms",
    )


def _idle(figures: Figures) -> Iterator[Row]:
    yield (
        f"idle mesh, {len(figures['cores_by_process'])} processes, CPU",
        f"{figures['cores']:.3f} core",
        "0.05 core",
    )


def _disaggregation(figures: Figures) -> Iterator[Row]:
    for case in figures["cases"]:
        yield (
            f"1P+1D against one process, {case['name']}",
            f"{case['disaggregated_tokens_per_s']:.0f} against "
            f"{case['single_tokens_per_s']:.0f} tokens/s: {case['ratio']:.2f} "
            f"({case['disaggregated_threads']}; {case['single_threads']})",
            "0.9",
        )


def _peers(figures: Figures) -> Iterator[Row]:
    for number, row in figures["by_num_clients"].items():
        clients = "1 client" if number == "1" else f"{number} clients"
        ours = row["banyan"]
        for name, theirs in row.items():
            if name not in ("banyan", "back_end"):
                yield (
                    f"beside {name}, {clients}: added TTFT p50 (p99), CPU per request",
                    f"{_peer(ours)}; {name} {_peer(theirs)}",
                    _verdict(ours, theirs),
                )


def _peer(row: Figures) -> str:
    return (
        f"{row['added_ttft_p50_ms']:.1f} ({row['added_ttft_p99_ms']:.1f}) ms, "
        f"{row['cpu_ms_per_request']:.1f} ms"
    )


def _verdict(ours: Figures, theirs: Figures) -> str:
    names = {"added_ttft_p50_ms": "TTFT", "cpu_ms_per_request": "CPU"}
    behind = [name for key, name in names.items() if ours[key] > theirs[key]]
    return f"ahead; behind in {' and '.join(behind)}" if behind else "ahead: yes"


def _images(figures: Figures) -> Iterator[Row]:
    sizes = ", ".join(f"{name} {size}" for name, size in figures["size_mb"].items())
    yield (
        "`docker compose up --build --wait` from nothing",
        f"build {figures['build_s'] / 60:.1f} min, up {figures['up_s']} s; MB: {sizes}",
        "stated",
    )


_ROWS: dict[str, Callable[[Figures], Iterator[Row]]] = {
    "gateway": _gateway,
    "place": _place,
    "idle": _idle,
    "disaggregation": _disaggregation,
    "peers": _peers,
    "images": _images,
}
