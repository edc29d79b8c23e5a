"""What is said, and how long is waited, while no broker answers.

aiokafka says every failed attempt of every connection, many a second during an outage. Its loggers
are quiet here; an outage is told once when it begins and once when it ends.
"""

from __future__ import annotations

import asyncio
import logging

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Outage:
    """Waits between attempts, longer each time up to a second, and tells an outage once."""

    def __init__(self, logger: logging.Logger, who: str) -> None:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        self._logger = logger
        self._who = who
        self._num_failures = 0

    async def wait_after(self, error: BaseException) -> None:
        if not self._num_failures:
            self._logger.warning(f"{self._who}: Kafka is away: {error!r}")
        backoff_s = _BACKOFF_S[min(self._num_failures, len(_BACKOFF_S) - 1)]
        self._num_failures += 1
        await asyncio.sleep(backoff_s)

    def ended(self) -> None:
        if self._num_failures:
            self._logger.info(f"{self._who}: Kafka is back")
        self._num_failures = 0
