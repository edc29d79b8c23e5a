"""Reads the settings, builds the real adapters, runs the autoscaler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from banyan_autoscaler.actuators import Actuator, DryRunActuator, LocalActuator
from banyan_autoscaler.compose_actuator import ComposeActuator
from banyan_autoscaler.docker_engine import DockerEngine
from banyan_autoscaler.service import AutoscalerService
from banyan_core.scaling_config import ScalingConfig, scaling_config
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.directories import DirectorySetting
from banyan_runtime.health_only import HealthOnly
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import Address, Bound, SettingsError, shared


class ActuatorKind(StrEnum):
    COMPOSE = "compose"
    LOCAL = "local"
    DRY_RUN = "dry-run"


DockerUrl = Annotated[
    str,
    Bound(
        "unix:///PATH, tcp://HOST:PORT or https://HOST:PORT",
        lambda url: url.startswith(("unix:///", "tcp://", "https://")),
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """`state_folder` is that of `banyan up`, for the local actuator only.

    `compose_project` and `docker_url` are for the compose actuator. The default actuator changes
    nothing: that a service may start and end others is asked for.
    """

    metrics_address: Address
    policies: Path = shared("BANYAN_POLICIES")
    directory: DirectorySetting = shared("BANYAN_DIRECTORY")
    actuator: ActuatorKind = ActuatorKind.DRY_RUN
    state_folder: Path | None = None
    compose_project: str = ""
    docker_url: DockerUrl = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    config: ScalingConfig
    make_actuator: Callable[[Kit], Actuator]


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    section = read_policy_file(settings.policies).section("scaling")
    try:
        config = scaling_config(section)
    except ValueError as error:
        raise SettingsError(f"{settings.policies}: {error}.") from None
    return Wiring(config, _actuator(settings))


def _actuator(settings: Settings) -> Callable[[Kit], Actuator]:
    if settings.actuator is ActuatorKind.DRY_RUN:
        return lambda _: DryRunActuator(settings.directory)
    if settings.actuator is ActuatorKind.COMPOSE:
        if not settings.compose_project:
            expected = "expected the name of the compose project, which the compose actuator needs"
            raise SettingsError(f"BANYAN_AUTOSCALER_COMPOSE_PROJECT=: {expected}.")
        return lambda kit: _compose_actuator(settings, kit)
    folder = settings.state_folder
    if folder is None or not folder.is_dir():
        key = f"BANYAN_AUTOSCALER_STATE_FOLDER={folder or ''}"
        expected = "expected the state folder of `banyan up`, which the local actuator needs"
        raise SettingsError(f"{key}: {expected}.")
    return lambda _: LocalActuator(folder)


def _compose_actuator(settings: Settings, kit: Kit) -> Actuator:
    engine = kit.keep(DockerEngine(settings.docker_url))
    return kit.keep(ComposeActuator(engine, settings.compose_project, kit.logger))


async def start(settings: Settings, wiring: Wiring, kit: Kit) -> HealthOnly:
    """Raises OSError when an address cannot be had."""
    await kit.serve_metrics(settings.metrics_address)
    actuator = wiring.make_actuator(kit)
    service = AutoscalerService(
        settings.id,
        kit.keep(open_bus(settings, kit.logger)),
        kit.clock,
        actuator,
        wiring.config,
        logger=kit.logger,
        registry=kit.registry,
        recorder=kit.recorder,
    )
    serving = HealthOnly(service, kit.network, settings.address, kit.logger)
    await serving.start("autoscaler", actuator=actuator.name)
    return serving


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main("autoscaler", Settings, env, wire, start)


def main() -> None:
    sys.exit(run(os.environ))
