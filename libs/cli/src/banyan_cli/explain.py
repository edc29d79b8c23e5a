"""`banyan explain REQUEST`: why it went where it went, and where its time was spent."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from banyan_cli.client import HttpClient
from banyan_cli.errors import CommandError


def explain(client: HttpClient, request_id: str, console: Console) -> None:
    """Print what the gateway knows of a request. Raises CommandError when it knows nothing."""
    console.print(explained(fetch(client, request_id)))


def fetch(client: HttpClient, request_id: str) -> dict[str, Any]:
    """The gateway's view of a request. Raises CommandError when it has none."""
    view = client.find(f"/v1/requests/{request_id}")
    if view is None:
        raise CommandError(f"The gateway knows no request {request_id} (any more).", 1)
    return view


def explained(view: dict[str, Any]) -> RenderableType:
    """The whole view for people."""
    parts: list[RenderableType] = [_headline(view)]
    for number, placement in enumerate(view.get("placements", []), 1):
        parts += [Text(f"\nPlacement {number}", style="bold"), placement_table(placement)]
    if view.get("workers"):
        parts += [Text("\nWorkers", style="bold"), workers_table(view)]
    if view.get("ledger_ms"):
        parts += [Text("\nWhere the time went", style="bold"), ledger_table(view)]
    return Group(*parts)


def _headline(view: dict[str, Any]) -> Text:
    reason = f" ({view['reason']})" if view.get("reason") else ""
    text = (
        f"{view['id']}: {view['state']}{reason}, model {view['model']}, "
        f"{view['num_prompt_tokens']} prompt tokens ({view['num_cached_tokens']} cached), "
        f"{view['num_output_tokens']} output tokens, {view['num_recoveries']} recoveries"
    )
    return Text(text)


def placement_table(placement: dict[str, Any]) -> Table:
    """Candidates by total, best first, each with its scores or the filter that dropped it."""
    title = f"{placement['policy']}: {placement['reason']}"
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    for column in ("role", "worker", "total", "scores"):
        table.add_column(column, justify="right" if column == "total" else "left")
    rows = sorted(placement["candidates"], key=lambda c: (c["role"], bool(c["filtered"])))
    for candidate in rows:
        scores = ", ".join(
            f"{name} {score['value']:.3f} x {score['weight']:g}"
            for name, score in candidate["scores"].items()
        )
        out = candidate["filtered"]
        total = "" if out else f"{candidate['total']:.3f}"
        detail = Text(f"out: {out}" if out else scores, style="dim" if out else "")
        table.add_row(candidate["role"], candidate["worker_id"], total, detail)
    return table


def workers_table(view: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("verb", "worker", "sequence", "end"):
        table.add_column(column)
    for row in view["workers"]:
        table.add_row(row["verb"], row["worker_id"], row["sequence_id"], row["end"])
    return table


def ledger_table(view: dict[str, Any]) -> Table:
    """Each part's milliseconds and share; what no part owns is said too."""
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    whole = view.get("e2e_ms") or sum(view["ledger_ms"].values()) or 1.0
    parts = dict(view["ledger_ms"])
    if view.get("e2e_ms") and "unattributed" not in parts:
        parts["unattributed"] = max(0.0, view["e2e_ms"] - sum(parts.values()))
    for name, ms in parts.items():
        table.add_row(name.replace("_", " "), f"{ms:.2f}", f"{100 * ms / whole:.0f} %")
    table.add_row("all", f"{whole:.2f}", "", style="bold")
    return table
