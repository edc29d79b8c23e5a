"""`banyan top`: the figures of the mesh and its workers, once a second."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from banyan_cli.client import HttpClient

PERIOD_S = 1.0
RECENT = 8


def top(metrics: HttpClient, window_s: int, console: Console, *, once: bool) -> None:
    """Show until Ctrl-C; with `once`, show one picture and return."""
    if once:
        console.print(picture(metrics, window_s))
        return
    with Live(picture(metrics, window_s), console=console, screen=True) as live:
        while True:
            time.sleep(PERIOD_S)
            live.update(picture(metrics, window_s))


def picture(metrics: HttpClient, window_s: int) -> RenderableType:
    slo = metrics.get(f"/v1/slo?window_s={window_s}")
    workers = metrics.get("/v1/workers")["workers"]
    recent = metrics.get(f"/v1/requests/recent?limit={RECENT}")["requests"]
    return Group(
        _summary(slo),
        "",
        _latency_table(slo["total"]),
        "",
        _worker_table(workers),
        "",
        _request_table(recent),
    )


def _summary(slo: dict[str, Any]) -> Text:
    total = slo["total"]
    outcomes = ", ".join(f"{count} {name}" for name, count in total["outcomes"].items())
    return Text(
        f"last {slo['window_s']:.0f} s: {outcomes or 'no requests'}; {slo['num_open']} open; "
        f"SLO attainment {_share(total['slo_attainment'])}, goodput "
        f"{total['goodput_requests_per_s']:.2f} requests/s, prefix hit rate "
        f"{_share(total['prefix_hit_rate'])}, {total['num_recoveries']} recoveries"
    )


def _latency_table(total: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "p50", "p90", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("ttft", "itl", "tpot", "e2e"):
        figures = total[f"{name}_s"]
        table.add_row(name.upper(), *(_ms(figures[p]) for p in ("p50", "p90", "p99")))
    return table


def _worker_table(workers: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("worker", "role", "state", "running", "waiting", "KV used", "prefill tokens/s")
    for column in columns:
        table.add_column(column)
    for row in workers:
        state = "draining" if row["draining"] else row["state"]
        cells = (row["worker_id"], row["role"], state, row["num_running"], row["num_waiting"])
        rest = (_share(row["kv_usage"]), f"{row['prefill_tokens_per_s']:.0f}")
        table.add_row(*(str(cell) for cell in cells), *rest)
    return table


def _request_table(requests: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("request", no_wrap=True)
    columns = ("outcome", "prompt", "cached", "output", "TTFT", "E2E", "workers")
    for column in columns:
        table.add_column(column)
    for row in requests:
        workers = f"{row['prefill_worker_id'] or '-'} > {row['decode_worker_id'] or '-'}"
        counts = (row["num_prompt_tokens"], row["num_cached_tokens"], row["num_output_tokens"])
        times = (_ms(row["ttft_s"]), _ms(row["e2e_s"]))
        cells = (row["request_id"], row["outcome"], *(str(count) for count in counts))
        table.add_row(*cells, *times, workers)
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f} %"
