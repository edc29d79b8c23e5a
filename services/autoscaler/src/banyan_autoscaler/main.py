"""Reads the settings, builds the real adapters, runs the autoscaler."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from banyan_autoscaler.actuators import Actuator, DryRunActuator, LocalActuator
from banyan_autoscaler.service import AutoscalerService
from banyan_core.scaling_config import ScalingConfig, scaling_config
from banyan_runtime.directories import DirectorySetting
from banyan_runtime.health_only import HealthOnly
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.redis_client import RedisUrl
from banyan_runtime.service_main import Kit, ServiceSettings, run_main
from banyan_runtime.settings import Address, SettingsError, shared
from banyan_runtime.valkey_bus import ValkeyBus


class ActuatorKind(StrEnum):
    LOCAL = "local"
    DRY_RUN = "dry-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    """`state_folder` is that of `banyan up`, for the local actuator only.

    The default actuator changes nothing: that a service may start and end others is asked for.
    """

    metrics_address: Address
    policies: Path = shared("BANYAN_POLICIES")
    directory: DirectorySetting = shared("BANYAN_DIRECTORY")
    bus_url: RedisUrl = shared("BANYAN_BUS_URL")
    actuator: ActuatorKind = ActuatorKind.DRY_RUN
    state_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    config: ScalingConfig
    actuator: Actuator


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    section = read_policy_file(settings.policies).section("scaling")
    try:
        config = scaling_config(section)
    except ValueError as error:
        raise SettingsError(f"{settings.policies}: {error}.") from None
    return Wiring(config, _actuator(settings))


def _actuator(settings: Settings) -> Actuator:
    if settings.actuator is ActuatorKind.DRY_RUN:
        return DryRunActuator(settings.directory)
    if settings.state_folder is None or not settings.state_folder.is_dir():
        key = f"BANYAN_AUTOSCALER_STATE_FOLDER={settings.state_folder or ''}"
        expected = "expected the state folder of `banyan up`, which the local actuator needs"
        raise SettingsError(f"{key}: {expected}.")
    return LocalActuator(settings.state_folder)


async def start(settings: Settings, wiring: Wiring, kit: Kit) -> HealthOnly:
    """Raises OSError when an address cannot be had."""
    await kit.serve_metrics(settings.metrics_address)
    service = AutoscalerService(
        settings.id,
        kit.keep(ValkeyBus(settings.bus_url)),
        kit.clock,
        wiring.actuator,
        wiring.config,
        logger=kit.logger,
        registry=kit.registry,
        recorder=kit.recorder,
    )
    serving = HealthOnly(service, kit.network, settings.address, kit.logger)
    await serving.start("autoscaler", actuator=wiring.actuator.name)
    return serving


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main("autoscaler", Settings, env, wire, start)


def main() -> None:
    sys.exit(run(os.environ))
