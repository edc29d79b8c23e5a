"""Reads the settings, builds the real adapters, runs the store."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from banyan_core.policies.routing_view import STORE_PREFIX
from banyan_kvstore.disk_tier import DiskTier
from banyan_kvstore.memory_tier import MemoryTier
from banyan_kvstore.service import KvStoreOptions, KvStoreService
from banyan_kvstore.tiers import Tiers
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.freed_memory import keep_freed_memory
from banyan_runtime.offload import ThreadOffload
from banyan_runtime.redis_client import IndexUrl
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import Address, NotNegative, Positive, SettingsError, shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """Bytes are bounds, not reservations. Without a disk folder there is no disk tier."""

    metrics_address: Address
    index_url: IndexUrl = shared("BANYAN_INDEX_URL")
    memory_bytes: NotNegative = 256 << 20
    disk_bytes: NotNegative = 1 << 30
    disk_folder: Path | None = None
    io_threads: Positive = 2


def wire(settings: Settings) -> None:
    """Raises SettingsError."""
    if not settings.id.startswith(STORE_PREFIX):
        expected = f"expected an id that starts with {STORE_PREFIX}"
        raise SettingsError(f"BANYAN_KVSTORE_ID={settings.id}: {expected}.")


async def start(settings: Settings, _: None, kit: Kit) -> KvStoreService:
    """Raises OSError when an address cannot be had or the folder is unusable."""
    await kit.serve_metrics(settings.metrics_address)
    offload = kit.keep(ThreadOffload(settings.io_threads))
    disk = None
    if settings.disk_folder is not None:
        disk = DiskTier(settings.disk_folder, settings.disk_bytes, offload)
    service = KvStoreService(
        settings.id,
        settings.address,
        kit.network,
        kit.keep(open_bus(settings, kit.logger)),
        kit.keep(RedisKvIndex(settings.index_url)),
        kit.clock,
        Tiers(MemoryTier(settings.memory_bytes), disk),
        KvStoreOptions(),
        logger=kit.logger,
        registry=kit.registry,
        recorder=kit.recorder,
        tracing=kit.tracing,
    )
    await service.start()
    return service


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main("kvstore", Settings, env, wire, start)


def main() -> None:
    keep_freed_memory()
    sys.exit(run(os.environ))
