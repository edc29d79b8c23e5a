"""Reads the settings, builds the real adapters, runs the metrics service."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from banyan_core.slo import SloTable, slo_table
from banyan_metrics.http import HttpServer, build_app
from banyan_metrics.service import MetricsService
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.health_only import HealthOnly
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import Address, SettingsError, shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """`address` answers gRPC health; `metrics_address` is HTTP: Prometheus and REST."""

    metrics_address: Address
    policies: Path = shared("BANYAN_POLICIES")


def wire(settings: Settings) -> SloTable:
    """The `[slo]` section of the policy file. Raises SettingsError."""
    section = read_policy_file(settings.policies).section("slo")
    try:
        return slo_table(section)
    except ValueError as error:
        raise SettingsError(f"{settings.policies}: {error}.") from None


async def start(settings: Settings, table: SloTable, kit: Kit) -> HealthOnly:
    """Raises OSError when an address cannot be had."""
    service = MetricsService(
        settings.id,
        kit.keep(open_bus(settings, kit.logger)),
        kit.clock,
        table,
        registry=kit.registry,
        logger=kit.logger,
        recorder=kit.recorder,
        tracing=kit.tracing,
    )
    http = HttpServer(build_app(service, kit.registry), settings.metrics_address)
    await http.start()
    kit.keep(http)
    serving = HealthOnly(service, kit.network, settings.address, kit.logger)
    await serving.start("metrics", http=http.address)
    return serving


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main("metrics", Settings, env, wire, start)


def main() -> None:
    sys.exit(run(os.environ))
