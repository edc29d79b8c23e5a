"""Makes the Grafana dashboard: a panel is a line here and thirty lines of JSON there.

`write` makes `infra/grafana/dashboards/banyan.json`, `check` tells whether it is what this says.
What it shows stands in `dashboard_panels`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dashboard_panels import ROWS, Panel

TARGET = Path(__file__).resolve().parents[1] / "grafana" / "dashboards" / "banyan.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def panels_json() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        grid = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": grid})
        y += 1
        for place, panel in enumerate(row):
            line, column = divmod(place * PANEL_WIDTH, WIDTH)
            panels.append(panel_json(panel, len(panels) + 1, column, y + line * PANEL_HEIGHT))
        y += PANEL_HEIGHT * -(-len(row) * PANEL_WIDTH // WIDTH)
    return panels


def dashboard() -> str:
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}
    model = {
        "name": "model",
        "type": "query",
        "label": "Model",
        "datasource": SOURCE,
        "query": "label_values(vllm:num_requests_running, model_name)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }
    page = {
        "uid": "banyan",
        "title": "Banyan",
        "tags": ["llm"],
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [source, model]},
        "panels": panels_json(),
    }
    return json.dumps(page, indent=1) + "\n"


def main(command: str) -> int:
    if command == "write":
        TARGET.write_text(dashboard())
        return 0
    if TARGET.read_text() == dashboard():
        return 0
    print(f"{TARGET} is not what {Path(__file__).name} says: run it with write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
