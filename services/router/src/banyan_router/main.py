"""Reads the settings, builds the real adapters, runs the router."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_core.policies import ROUTING
from banyan_core.policies.routing_view import RoutingPolicy
from banyan_router.service import RouterService
from banyan_router.servicer import LOOKUP_TIMEOUT_S
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import parse_directory
from banyan_runtime.directory import Directory
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, Closable, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.recorder import FileRecorder
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.settings import SettingsError, read_settings, shared
from banyan_runtime.telemetry import json_logger

PREFIX = "BANYAN_ROUTER_"


@dataclass(frozen=True, slots=True)
class Settings:
    """`seed` and `record` make a run replayable: the file gets every input and decision."""

    id: str
    address: str
    metrics_address: str
    policies: str = shared("BANYAN_POLICIES")
    directory: str = shared("BANYAN_DIRECTORY")
    index_url: str = shared("BANYAN_INDEX_URL")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    seed: int = 0
    record: Path | None = None
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    policy: RoutingPolicy
    directory: Directory
    index: RedisKvIndex


class _Recording:
    """Ends the record after the service, so that its last decisions are in it."""

    def __init__(self, recorder: FileRecorder) -> None:
        self._recorder = recorder

    async def close(self) -> None:
        self._recorder.close()


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    policy = read_policy_file(Path(settings.policies)).policy("routing", ROUTING)
    try:
        directory = parse_directory(settings.directory)
    except ValueError as error:
        raise SettingsError(f"BANYAN_DIRECTORY: {error}.") from None
    try:
        index = RedisKvIndex(settings.index_url, lookup_timeout_s=LOOKUP_TIMEOUT_S)
    except ValueError as error:
        raise SettingsError(f"BANYAN_INDEX_URL={settings.index_url}: {error}") from None
    return Wiring(policy, directory, index)


async def start(settings: Settings, wiring: Wiring, logger: logging.Logger) -> Assembly:
    """Raises OSError when an address is taken or the record cannot be written."""
    registry = CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    recorder = None if settings.record is None else FileRecorder(settings.record)
    service = RouterService(
        settings.id,
        settings.address,
        network,
        wiring.index,
        wiring.directory,
        SystemClock(),
        wiring.policy,
        settings.seed,
        logger=logger,
        registry=registry,
        recorder=recorder,
    )
    metrics = await serve_metrics_http(registry, settings.metrics_address)
    try:
        await service.start()
    except OSError:
        await metrics.close()
        raise
    adapters: list[Closable] = [metrics, network, wiring.index]
    if recorder is not None:
        adapters.append(_Recording(recorder))
    return Assembly(service, adapters)


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    try:
        settings = read_settings(Settings, PREFIX, env)
        wiring = wire(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger("router", settings.id)
    return run_service(
        lambda: start(settings, wiring, logger), grace_s=settings.grace_s, logger=logger
    )


def main() -> None:
    sys.exit(run(os.environ))
