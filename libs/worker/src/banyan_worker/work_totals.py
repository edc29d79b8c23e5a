"""What a worker has done since its start: `work` counts, `metrics` shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class WorkTotals:
    """Counters since the start."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_refused: int = 0
