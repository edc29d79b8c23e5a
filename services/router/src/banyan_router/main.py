"""Reads the settings, builds the real adapters, runs the router."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from banyan_core.policies import ROUTING
from banyan_core.policies.routing_view import RoutingPolicy
from banyan_router.prefixes import LOOKUP_TIMEOUT_S
from banyan_router.service import RouterService
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.directories import DirectorySetting
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.redis_client import IndexUrl
from banyan_runtime.redis_index import RedisKvIndex
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import Address, shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """With `seed` a record replays to the same decisions."""

    metrics_address: Address
    policies: Path = shared("BANYAN_POLICIES")
    directory: DirectorySetting = shared("BANYAN_DIRECTORY")
    index_url: IndexUrl = shared("BANYAN_INDEX_URL")
    seed: int = 0


def wire(settings: Settings) -> RoutingPolicy:
    """The policy. Raises SettingsError."""
    return read_policy_file(settings.policies).policy("routing", ROUTING)


async def start(settings: Settings, policy: RoutingPolicy, kit: Kit) -> RouterService:
    """Raises OSError when an address cannot be had."""
    await kit.serve_metrics(settings.metrics_address)
    service = RouterService(
        settings.id,
        settings.address,
        kit.network,
        kit.keep(open_bus(settings, kit.logger)),
        kit.keep(RedisKvIndex(settings.index_url, lookup_timeout_s=LOOKUP_TIMEOUT_S)),
        settings.directory,
        kit.clock,
        policy,
        settings.seed,
        logger=kit.logger,
        registry=kit.registry,
        recorder=kit.recorder,
        tracing=kit.tracing,
    )
    await service.start()
    return service


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    return run_main("router", Settings, env, wire, start)


def main() -> None:
    sys.exit(run(os.environ))
