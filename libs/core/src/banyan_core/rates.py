"""Moving averages of how fast an engine is, for admission, placement and onboarding."""

from __future__ import annotations

from banyan_core.runner import StepPlan
from banyan_core.types import NS_PER_S

_WEIGHT_OF_NEW = 0.2


class MovingAverage:
    """Exponential; the first value counts in full. `value` is 0 until then."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> None:
        old = self.value if self.value else value
        self.value = old + _WEIGHT_OF_NEW * (value - old)


class StepRates:
    """Fed with every finished step."""

    def __init__(self) -> None:
        self._prefill = MovingAverage()
        self._step = MovingAverage()

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of steps that held a prompt chunk; 0 when there was none yet."""
        return self._prefill.value

    @property
    def step_s(self) -> float:
        return self._step.value

    def observe(self, plan: StepPlan, elapsed_ns: int) -> None:
        if elapsed_ns <= 0:
            return
        elapsed_s = elapsed_ns / NS_PER_S
        self._step.add(elapsed_s)
        num_prompt_tokens = sum(
            len(item.token_ids)
            for item in plan.items
            if len(item.token_ids) > 1 + item.num_draft_tokens
        )
        if num_prompt_tokens:
            self._prefill.add(num_prompt_tokens / elapsed_s)
