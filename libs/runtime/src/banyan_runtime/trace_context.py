"""Which trace the running task works for, as W3C `traceparent` says it on every wire.

The RPC seam sends the context of the task that calls and sets it for the handler that serves, so
whatever a handler starts belongs to its request's trace without handing it on by name. Only a
trace that is recorded is carried: where there is none, nothing is sent and nobody makes a span.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT = "traceparent"
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span of one trace; `sampled` says whether whoever began the trace records it."""

    trace_id: int
    span_id: int
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"

    @property
    def trace_id_hex(self) -> str:
        return f"{self.trace_id:032x}"

    @classmethod
    def parse(cls, text: str) -> TraceContext | None:
        """From a `traceparent`; None when it is none. A later version's additions are ignored."""
        found = _FORM.fullmatch(text)
        if found is None or (text.startswith("00") and found[4] is not None):
            return None
        trace_id, span_id, flags = (int(found[group], 16) for group in (1, 2, 3))
        return cls(trace_id, span_id, bool(flags & 1)) if trace_id and span_id else None


_CURRENT: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def current_trace() -> TraceContext | None:
    """The recorded trace that the running task works for."""
    return _CURRENT.get()


@contextmanager
def in_trace(trace: TraceContext | None) -> Generator[None]:
    """What runs or is started inside works for `trace`."""
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def trace_headers(trace: TraceContext | None) -> tuple[tuple[str, bytes], ...]:
    """For a record on the bus that tells of something in this trace."""
    return () if trace is None else ((TRACEPARENT, str(trace).encode()),)


def trace_of(headers: Iterable[tuple[str, bytes]]) -> TraceContext | None:
    """The recorded trace that a bus record's headers name."""
    sent = next((value for name, value in headers if name == TRACEPARENT), b"")
    return _recorded(sent.decode("ascii", "replace"))


def _recorded(traceparent: str) -> TraceContext | None:
    trace = TraceContext.parse(traceparent)
    return trace if trace is not None and trace.sampled else None


def enter_trace(traceparent: str | None) -> None:
    """For the start of a served call: the rest of this task works for the caller's trace."""
    _CURRENT.set(_recorded(traceparent) if traceparent else None)
