"""Logs as one JSON object a line, with the request id, never with prompt text or token ids.

Fields come through logging's own `extra`: `logger.info("placed", extra={"request_id": ...})`; the
trace of the task that logs is added by itself.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

import msgspec

from banyan_runtime.trace_context import current_trace

_OURS = "banyan."
_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `service`, `instance`, `message`, then the record's extra fields.

    A line of somebody else's has the name of its `logger`.
    """

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._who = {"service": service, "instance": instance}

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._who,
            "message": record.getMessage(),
        }
        if not record.name.startswith(_OURS):
            line["logger"] = record.name
        trace = current_trace()
        if trace is not None:
            line["trace_id"] = trace.trace_id_hex
        line.update((k, v) for k, v in vars(record).items() if k not in _PLAIN_FIELDS)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


def json_logger(
    service: str, instance: str, stream: TextIO | None = None, level: str = "INFO"
) -> logging.Logger:
    """The logger of one service instance, writing to `stream` (standard error by default)."""
    logger = logging.getLogger(f"{_OURS}{service}.{instance}")
    logger.setLevel(level)
    logger.propagate = False
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance))
    logger.handlers[:] = [handler]
    return logger


def log_everything_as_json(service: str, instance: str) -> None:
    """What libraries log or warn of also comes out as JSON lines.

    Only what would be plain text on standard error is changed: a logger that somebody gave a
    handler keeps it.
    """
    last = logging.StreamHandler(sys.stderr)
    last.setLevel(logging.WARNING)
    last.setFormatter(JsonFormatter(service, instance))
    logging.lastResort = last
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [last]
