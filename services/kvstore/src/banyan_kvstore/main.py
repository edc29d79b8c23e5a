"""Reads the settings, builds the real adapters, runs the store."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_core.policies.routing_view import STORE_PREFIX
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime.clock import SystemClock
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.offload import ThreadOffload
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.settings import SettingsError, read_settings, shared
from banyan_runtime.telemetry import json_logger
from banyan_runtime.valkey_bus import ValkeyBus

PREFIX = "BANYAN_KVSTORE_"


@dataclass(frozen=True, slots=True)
class Settings:
    """Bytes are bounds, not reservations. Without a disk folder there is no disk tier."""

    id: str
    address: str
    metrics_address: str
    bus_url: str = shared("BANYAN_BUS_URL")
    index_url: str = shared("BANYAN_INDEX_URL")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    memory_bytes: int = 256 << 20
    disk_bytes: int = 1 << 30
    disk_folder: Path | None = None
    io_threads: int = 2
    grace_s: float = 5.0


def check(settings: Settings) -> None:
    """Raises SettingsError."""
    if not settings.id.startswith(STORE_PREFIX):
        expected = f"expected an id that starts with {STORE_PREFIX}"
        raise SettingsError(f"{PREFIX}ID={settings.id}: {expected}.")
    for name in ("memory_bytes", "disk_bytes"):
        if getattr(settings, name) < 0:
            value = getattr(settings, name)
            raise SettingsError(f"{PREFIX}{name.upper()}={value}: expected 0 or more bytes.")
    if settings.io_threads < 1:
        raise SettingsError(f"{PREFIX}IO_THREADS={settings.io_threads}: expected 1 or more.")


async def start(settings: Settings, logger: logging.Logger) -> Assembly:
    """Raises SettingsError, or OSError when an address is taken or the folder unusable."""
    try:
        index = RedisKvIndex(settings.index_url)
    except ValueError as error:
        raise SettingsError(f"BANYAN_INDEX_URL={settings.index_url}: {error}") from None
    registry = CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    bus = ValkeyBus(settings.bus_url)
    offload = ThreadOffload(settings.io_threads)
    disk = None
    if settings.disk_folder is not None:
        disk = DiskTier(settings.disk_folder, settings.disk_bytes, offload)
    service = KvStoreService(
        settings.id,
        settings.address,
        network,
        bus,
        index,
        SystemClock(),
        Tiers(MemoryTier(settings.memory_bytes), disk),
        KvStoreOptions(),
        logger=logger,
        registry=registry,
    )
    metrics = await serve_metrics_http(registry, settings.metrics_address)
    try:
        await service.start()
    except OSError:
        await metrics.close()
        raise
    return Assembly(service, (metrics, network, bus, index, offload))


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    try:
        settings = read_settings(Settings, PREFIX, env)
        check(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger("kvstore", settings.id)
    return run_service(lambda: start(settings, logger), grace_s=settings.grace_s, logger=logger)


def main() -> None:
    sys.exit(run(os.environ))
