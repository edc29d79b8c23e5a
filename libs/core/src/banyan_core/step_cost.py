"""What one more token costs a decode step, as a share of its time, from the steps themselves."""

from __future__ import annotations

_WEIGHT_OF_NEW = 0.05


class StepCost:
    """A moving straight line through (tokens of a step, its time)."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._tokens = self._time = 0.0  # means
        self._spread = self._slope_sum = 0.0  # variance of tokens, covariance with time

    @property
    def token_share(self) -> float:
        """0 until steps of different sizes were seen: then the first drafts are how to learn it."""
        if self._spread < 0.05 or self._time <= 0:
            return 0.0
        return max(0.0, self._slope_sum / self._spread / self._time)

    def observe(self, num_tokens: int, elapsed_ns: int) -> None:
        self._num_steps += 1
        weight = max(_WEIGHT_OF_NEW, 1 / self._num_steps)
        off_tokens, off_time = num_tokens - self._tokens, elapsed_ns - self._time
        self._tokens += weight * off_tokens
        self._time += weight * off_time
        kept = 1 - weight
        self._spread = kept * (self._spread + weight * off_tokens * off_tokens)
        self._slope_sum = kept * (self._slope_sum + weight * off_tokens * off_time)
