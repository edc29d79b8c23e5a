"""Results as files, one per measure, and the table that is made of the newest of each.

A README has the table between two marks, and nobody writes there by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
END = "<!-- end -->"

Figures = Mapping[str, Any]
Row = tuple[str, str, str]
"""What was measured, what came out, the aim."""
Rows = Mapping[str, Callable[[Figures], Iterable[Row]]]
"""The rows that a measure's figures make, by measure, in the table's order."""


class ResultTable:
    """Results of one `kind`: `results/DATE-KIND-MEASURE.json`, measured by `make bench-KIND`."""

    def __init__(self, kind: str, describe: Callable[[Figures], str]) -> None:
        """`describe` gives the machine and the care of one result, for the line below."""
        self.begin = f"<!-- made by `make bench-{kind}` from load-tests/results -->"
        self._kind = kind
        self._describe = describe

    def write(self, measure: str, result: dict[str, object]) -> Path:
        path = RESULTS / f"{str(result['date'])[:10]}-{self._kind}-{measure}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        return path

    def newest(self) -> dict[str, Figures]:
        """The newest result of each measure, by measure."""
        mark = f"-{self._kind}-"
        paths = sorted(RESULTS.glob(f"*{mark}*.json"))
        return {path.stem.partition(mark)[2]: json.loads(path.read_text()) for path in paths}

    def table(self, results: Mapping[str, Figures], rows: Rows) -> str:
        """Markdown: a row per figure, then day, commit and machine of each measure."""
        lines, notes = ["| what | measured | aim |", "|---|---|---|"], []
        for measure, rows_of in rows.items():
            if measure in results:
                result = results[measure]
                lines += [f"| {' | '.join(row)} |" for row in rows_of(result["figures"])]
                known = f"`{measure}` {result['date'][:10]}, commit {result['commit']}"
                notes.append(f"{known}, {self._describe(result)}")
        return "\n".join([*lines, "", "; ".join(notes) or "Nothing is measured yet"]) + "."

    def insert(self, text: str, made: str) -> str:
        """`text` with `made` between the marks. Raises ValueError when the marks are not there."""
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"expected the marks {self.begin} and {END}")
        return f"{before}{self.begin}\n{made}\n{END}{after}"
