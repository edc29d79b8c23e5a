"""What the `main` of every service does alike: settings, adapters, start, and the end in order.

A service adds its own settings, a `wire` that makes of them what must be right before anything
starts, and a `start` that builds it out of a `Kit`.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry

from banyan_runtime.clock import SystemClock
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, Running, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.recorder import FileRecorder
from banyan_runtime.settings import (
    Address,
    Ratio,
    Seconds,
    SettingsError,
    WebOrigin,
    read_settings,
    shared,
)
from banyan_runtime.telemetry import json_logger, log_everything_as_json
from banyan_runtime.tracing import NO_TRACING, Tracing


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What every service is told. `record` is a file for what its decider heard and answered.

    Unset, `id` is the service and this host's name: replicas share one environment. Traces go to
    `otlp_endpoint`, under OpenTelemetry's own key, as do `trace_ratio` of those that begin here.
    """

    id: str
    address: Address
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    record: Path | None = None
    otlp_endpoint: WebOrigin | None = shared("OTEL_EXPORTER_OTLP_ENDPOINT", default=None)
    trace_ratio: Ratio = shared("OTEL_TRACES_SAMPLER_ARG", default=1.0)
    grace_s: Seconds = 5.0


class Closable(Protocol):
    async def close(self) -> None: ...


S = TypeVar("S", bound=ServiceSettings)
W = TypeVar("W")
A = TypeVar("A", bound=Closable)


class Kit:
    """The adapters of one process. What is kept here is closed after the service, newest first."""

    def __init__(
        self,
        service: str,
        settings: ServiceSettings,
        logger: logging.Logger,
        opened: AsyncExitStack,
    ) -> None:
        self._opened = opened
        self.logger = logger
        self.clock = SystemClock()
        self.registry = CollectorRegistry()
        self.recorder: FileRecorder | None = None
        if settings.record is not None:
            self.recorder = opened.enter_context(FileRecorder(settings.record))
        self.tracing = self._open_tracing(service, settings)
        security = ChannelSecurity.parse(settings.channels)
        self.network = self.keep(GrpcNetwork(security, traced=self.tracing.is_on))

    def _open_tracing(self, service: str, settings: ServiceSettings) -> Tracing:
        endpoint = settings.otlp_endpoint
        if endpoint is None:
            return NO_TRACING
        from banyan_runtime.otel_tracing import otlp_tracing  # 0.3 s, only for who wants traces

        ratio = settings.trace_ratio
        return self.keep(
            otlp_tracing(endpoint, ratio, self.clock, service, settings.id, self.logger)
        )

    def keep(self, adapter: A) -> A:
        self._opened.push_async_callback(adapter.close)
        return adapter

    async def serve_metrics(self, address: str) -> None:
        """Raises OSError when the address cannot be had."""
        self.keep(await serve_metrics_http(self.registry, address))


def run_main(
    service: str,
    settings_type: type[S],
    env: Mapping[str, str],
    wire: Callable[[S], W],
    start: Callable[[S, W, Kit], Awaitable[Running]],
) -> int:
    """Run `service`, such as "router", until a signal; the exit code.

    `wire` raises SettingsError; `start` that, or OSError for what cannot be opened.
    """
    prefix = f"BANYAN_{service.upper()}_"
    named = {f"{prefix}ID": f"{service}-{socket.gethostname()}", **env}
    try:
        settings = read_settings(settings_type, prefix, named)
        wiring = wire(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger(service, settings.id)
    log_everything_as_json(service, settings.id)

    async def assemble() -> Assembly:
        async with AsyncExitStack() as opened:
            try:
                started = await start(settings, wiring, Kit(service, settings, logger, opened))
            except OSError as error:
                raise _blame(error, settings, prefix) from None
            return Assembly(started, opened.pop_all())

    return run_service(assemble, grace_s=settings.grace_s, logger=logger)


def _blame(error: OSError, settings: ServiceSettings, prefix: str) -> Exception:
    """The error again, told as one of the setting whose value it is about."""
    if error.filename is None:
        return error
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is not None and _is_about(str(error.filename), value):
            why = error.strerror
            if isinstance(value, Path):
                why = f"expected a place to write to ({why})"
            return SettingsError(f"{prefix}{field.name.upper()}={value}: {why}.")
    return error


def _is_about(name: str, value: object) -> bool:
    if isinstance(value, Path):
        return Path(name) == value or value in Path(name).parents
    return name == value
