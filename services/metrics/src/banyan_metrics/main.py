"""Reads the settings, builds the real adapters, runs the metrics service."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_core.slo import SloTable, slo_table
from banyan_metrics.http import HttpServer, build_app
from banyan_metrics.service import MetricsService
from banyan_runtime.clock import SystemClock
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, run_service
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.rpc import Server
from banyan_runtime.settings import SettingsError, read_settings, shared
from banyan_runtime.telemetry import json_logger
from banyan_runtime.valkey_bus import ValkeyBus

PREFIX = "BANYAN_METRICS_"


@dataclass(frozen=True, slots=True)
class Settings:
    """`address` answers gRPC health; `metrics_address` is HTTP: Prometheus and REST."""

    id: str
    address: str
    metrics_address: str
    policies: str = shared("BANYAN_POLICIES")
    bus_url: str = shared("BANYAN_BUS_URL")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    grace_s: float = 5.0


class _Serving:
    """The service, with a server around it that answers health and reflection only."""

    def __init__(self, server: Server, service: MetricsService) -> None:
        self._server = server
        self._service = service

    async def stop(self, grace_s: float) -> None:
        self._server.set_serving(False)
        await self._service.stop(grace_s)
        await self._server.stop(grace_s)


def targets(policies: str) -> SloTable:
    """The `[slo]` section of the policy file. Raises SettingsError."""
    section = read_policy_file(Path(policies)).section("slo")
    try:
        return slo_table(section)
    except ValueError as error:
        raise SettingsError(f"{policies}: {error}.") from None


async def start(settings: Settings, table: SloTable, logger: logging.Logger) -> Assembly:
    """Raises OSError when an address is taken."""
    registry = CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    bus = ValkeyBus(settings.bus_url)
    service = MetricsService(
        settings.id, bus, SystemClock(), table, registry=registry, logger=logger
    )
    http = HttpServer(build_app(service, registry), settings.metrics_address)
    await http.start()
    server = await network.serve(settings.address, [])
    await service.start()
    server.set_serving(True)
    return Assembly(_Serving(server, service), (http, network, bus))


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    try:
        settings = read_settings(Settings, PREFIX, env)
        table = targets(settings.policies)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger("metrics", settings.id)
    return run_service(
        lambda: start(settings, table, logger), grace_s=settings.grace_s, logger=logger
    )


def main() -> None:
    sys.exit(run(os.environ))
