"""Reads the settings, builds the real adapters, runs the autoscaler."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_autoscaler.actuators import Actuator, DryRunActuator, LocalActuator
from banyan_autoscaler.service import AutoscalerService
from banyan_core.scaling_config import ScalingConfig, scaling_config
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import parse_directory
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, Closable, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.recorder import FileRecorder
from banyan_runtime.rpc import Server
from banyan_runtime.settings import SettingsError, read_settings, shared
from banyan_runtime.telemetry import json_logger
from banyan_runtime.valkey_bus import ValkeyBus

PREFIX = "BANYAN_AUTOSCALER_"


class ActuatorKind(StrEnum):
    LOCAL = "local"
    DRY_RUN = "dry-run"


@dataclass(frozen=True, slots=True)
class Settings:
    """`state_folder` is that of `banyan up`, for the local actuator only.

    The default actuator changes nothing: that a service may start and end others is asked for.
    """

    id: str
    address: str
    metrics_address: str
    policies: str = shared("BANYAN_POLICIES")
    directory: str = shared("BANYAN_DIRECTORY")
    bus_url: str = shared("BANYAN_BUS_URL")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    actuator: ActuatorKind = ActuatorKind.DRY_RUN
    state_folder: Path | None = None
    record: Path | None = None
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    config: ScalingConfig
    actuator: Actuator


class _Serving:
    """The service, with a server around it that answers health and reflection only."""

    def __init__(self, server: Server, service: AutoscalerService) -> None:
        self._server = server
        self._service = service

    async def stop(self, grace_s: float) -> None:
        self._server.set_serving(False)
        await self._service.stop(grace_s)
        await self._server.stop(grace_s)


class _Recording:
    """Ends the record after the service, so that its last decisions are in it."""

    def __init__(self, recorder: FileRecorder) -> None:
        self._recorder = recorder

    async def close(self) -> None:
        self._recorder.close()


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    section = read_policy_file(Path(settings.policies)).section("scaling")
    try:
        config = scaling_config(section)
    except ValueError as error:
        raise SettingsError(f"{settings.policies}: {error}.") from None
    return Wiring(config, _actuator(settings))


def _actuator(settings: Settings) -> Actuator:
    if settings.actuator is ActuatorKind.DRY_RUN:
        try:
            return DryRunActuator(parse_directory(settings.directory))
        except ValueError as error:
            raise SettingsError(f"BANYAN_DIRECTORY: {error}.") from None
    if settings.state_folder is None or not settings.state_folder.is_dir():
        expected = "expected the state folder of `banyan up`, which the local actuator needs"
        raise SettingsError(f"{PREFIX}STATE_FOLDER={settings.state_folder or ''}: {expected}.")
    return LocalActuator(settings.state_folder)


async def start(settings: Settings, wiring: Wiring, logger: logging.Logger) -> Assembly:
    """Raises OSError when an address is taken or the record cannot be written."""
    registry = CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    bus = ValkeyBus(settings.bus_url)
    recorder = None if settings.record is None else FileRecorder(settings.record)
    service = AutoscalerService(
        settings.id,
        bus,
        SystemClock(),
        wiring.actuator,
        wiring.config,
        logger=logger,
        registry=registry,
        recorder=recorder,
    )
    metrics = await serve_metrics_http(registry, settings.metrics_address)
    server = await network.serve(settings.address, [])
    await service.start()
    server.set_serving(True)
    adapters: list[Closable] = [metrics, network, bus]
    if recorder is not None:
        adapters.append(_Recording(recorder))
    return Assembly(_Serving(server, service), adapters)


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    try:
        settings = read_settings(Settings, PREFIX, env)
        wiring = wire(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger("autoscaler", settings.id)
    return run_service(
        lambda: start(settings, wiring, logger), grace_s=settings.grace_s, logger=logger
    )


def main() -> None:
    sys.exit(run(os.environ))
