"""How long a request takes once a worker has it, learned from those that finished."""

from __future__ import annotations

from banyan_core.rates import MovingAverage


class ServiceTime:
    """Moving averages: time per output token, prompt included, and tokens of an answer."""

    def __init__(self) -> None:
        self._token_ns = MovingAverage()
        self._num_tokens = MovingAverage()

    def finished(self, served_ns: int, num_output_tokens: int) -> None:
        if num_output_tokens:
            self._token_ns.add(served_ns / num_output_tokens)
            self._num_tokens.add(num_output_tokens)

    def expected_ns(self, max_tokens: int) -> int:
        """0 as long as nothing has finished."""
        return round(self._token_ns.value * min(max_tokens, self._num_tokens.value))
