"""Traces as the services make them: a span or nothing, never a span per token.

`NO_TRACING` is what a service has unless an endpoint is set: every call on it answers None, so
that a traced place costs one comparison. The real side is `otel_tracing`, loaded only then.
Instants are those of the service's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from banyan_runtime.trace_context import TraceContext

Attribute = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Attribute]


class Kind(StrEnum):
    """OpenTelemetry's span kinds, those that the mesh has."""

    SERVER = "server"
    CONSUMER = "consumer"
    INTERNAL = "internal"


class Span(Protocol):
    """An open span."""

    @property
    def context(self) -> TraceContext: ...

    def set(self, attributes: Attributes) -> None: ...

    def event(self, name: str, at_ns: int, attributes: Attributes) -> None: ...

    def child(self, name: str, start_ns: int, end_ns: int, attributes: Attributes) -> None:
        """A part of this span's time that is over already."""
        ...

    def end(self, error: str = "") -> None:
        """Now. With `error`, a word for programs, the span counts as failed."""
        ...


class Tracing(Protocol):
    """One service instance's way to its traces."""

    @property
    def is_on(self) -> bool: ...

    def begin(self, name: str, start_ns: int, traceparent: str | None) -> Span | None:
        """The first span of a request here: in the client's trace, or in a new one.

        None when the trace is not recorded, by the client's word or by the sampling ratio.
        """
        ...

    def under(
        self,
        parent: TraceContext | None,
        name: str,
        attributes: Attributes,
        kind: Kind = Kind.SERVER,
    ) -> Span | None:
        """A span that starts now; None without a parent."""
        ...

    async def close(self) -> None:
        """Send what is left, within a bound."""
        ...


class NoTracing:
    """Tracing that is off."""

    is_on = False

    def begin(self, name: str, start_ns: int, traceparent: str | None) -> Span | None:
        return None

    def under(
        self,
        parent: TraceContext | None,
        name: str,
        attributes: Attributes,
        kind: Kind = Kind.SERVER,
    ) -> Span | None:
        return None

    async def close(self) -> None:
        return


NO_TRACING: Tracing = NoTracing()


@dataclass(slots=True)
class Ending:
    """How the block of a span ends; without news the span is forgotten."""

    is_news: bool = True


@contextmanager
def spanning(span: Span | None) -> Generator[Ending]:
    """End `span` with the block, as failed if that raised. A caller that left is no failure."""
    ending, error = Ending(), ""
    try:
        yield ending
    except Exception as failure:
        error = type(failure).__name__
        raise
    finally:
        if span is not None and (ending.is_news or error):
            span.end(error)
