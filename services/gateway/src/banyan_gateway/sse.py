"""Server-sent events, as bytes.

A stream that succeeded ends with `DONE`; one that broke ends with an error event and without it.
Clients take a stream that merely stops for a complete one, so it must never merely stop.
"""

from __future__ import annotations

from typing import Final

from banyan_gateway.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def frame(data: bytes) -> bytes:
    """One event. `data` is JSON and therefore holds no line break."""
    return b"data: " + data + b"\n\n"


def error_event(error: ApiError) -> bytes:
    return frame(error.body())
