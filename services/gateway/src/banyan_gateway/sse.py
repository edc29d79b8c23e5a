"""Server-sent events, as bytes.

A stream that succeeded ends with `DONE`; one that broke ends with an error event and without it.
Clients take a stream that merely stops for a complete one, so it must never merely stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from banyan_gateway.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def frames(objects: Sequence[bytes]) -> bytes:
    """One event each. They are JSON and therefore hold no line break."""
    return b"data: " + b"\n\ndata: ".join(objects) + b"\n\n" if objects else b""


def error_event(error: ApiError) -> bytes:
    return frames([error.body()])
