"""What the `main` of both worker services does: settings, runner, real adapters, run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_core.policies import ONBOARD, OnboardPolicy
from banyan_core.policies.onboard import Cheapest
from banyan_core.scheduler import EngineLimits
from banyan_core.types import NS_PER_S, Role, WorkerRef
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import parse_directory
from banyan_runtime.directory import Directory
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.policy_file import read_policy_file
from banyan_runtime.settings import SettingsError, read_settings, shared
from banyan_runtime.telemetry import json_logger
from banyan_runtime.valkey_bus import ValkeyBus
from banyan_worker.options import WorkerOptions
from banyan_worker.runners import Loaded, RunnerKind, load_runner
from banyan_worker.service import WorkerService
from banyan_worker.step_loop import ThreadExecutor

_ANY_HOST = ("0.0.0.0", "[::]")


class Numerics(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True)
class Settings:
    """`advertise` is the address that others call; unset it is `address`, with this machine's
    name where that is every interface. The KV pool is `num_blocks` if set, else what fits into
    `kv_bytes`. `grace_s` is how long running sequences may go on after SIGTERM.
    """

    id: str
    address: str
    metrics_address: str
    bus_url: str = shared("BANYAN_BUS_URL")
    directory: str = shared("BANYAN_DIRECTORY")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    advertise: str | None = None
    policies: Path | None = shared("BANYAN_POLICIES", default=None)  # noqa: RUF009 - a field
    runner: RunnerKind = RunnerKind.TORCH
    model: Path | None = None
    model_name: str | None = None
    numerics: Numerics = Numerics.FAST
    block_size: int = 16
    kv_bytes: int = 256 << 20
    num_blocks: int | None = None
    num_threads: int | None = None
    max_step_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 256
    offload: bool = True
    stream_grace_s: float = 5.0
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked and loaded before anything starts."""

    loaded: Loaded
    directory: Directory
    options: WorkerOptions
    advertise: str


def wire(settings: Settings, prefix: str) -> Wiring:
    """Raises SettingsError."""
    try:
        directory = parse_directory(settings.directory)
    except ValueError as error:
        raise SettingsError(f"BANYAN_DIRECTORY: {error}.") from None
    options = _options(settings, prefix)
    loaded = load_runner(
        settings.runner,
        prefix=prefix,
        folder=settings.model,
        name=settings.model_name,
        numerics=settings.numerics.value,
        block_size=settings.block_size,
        kv_bytes=settings.kv_bytes,
        num_blocks=settings.num_blocks,
        num_threads=settings.num_threads,
    )
    return Wiring(loaded, directory, options, settings.advertise or _callable(settings.address))


def _options(settings: Settings, prefix: str) -> WorkerOptions:
    for name in ("grace_s", "stream_grace_s"):
        if getattr(settings, name) < 0:
            value = getattr(settings, name)
            raise SettingsError(f"{prefix}{name.upper()}={value}: expected 0 or more seconds.")
    if settings.max_waiting < 1:
        got = settings.max_waiting
        raise SettingsError(f"{prefix}MAX_WAITING={got}: expected 1 or more sequences.")
    try:
        limits = EngineLimits(
            max_step_tokens=settings.max_step_tokens,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
        )
    except ValueError as error:
        raise SettingsError(f"{prefix}MAX_RUNNING: {error}.") from None
    return WorkerOptions(
        bind_address=settings.address,
        limits=limits,
        onboard=_onboard(settings.policies),
        grace_ns=round(settings.stream_grace_s * NS_PER_S),
        offload=settings.offload,
    )


def _onboard(path: Path | None) -> OnboardPolicy:
    """The policy of the file's `[onboard]`; the default when there is no file or section."""
    if path is None:
        return Cheapest()
    file = read_policy_file(path)
    return file.policy("onboard", ONBOARD) if file.section("onboard") else Cheapest()


def _callable(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in _ANY_HOST else address


async def start(role: Role, settings: Settings, wiring: Wiring, logger: logging.Logger) -> Assembly:
    """Raises OSError when an address is taken."""
    clock = SystemClock()
    registry = CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    bus = ValkeyBus(settings.bus_url)
    service = WorkerService(
        WorkerRef(settings.id, clock.unix_ns(), wiring.advertise, role),
        wiring.loaded.card,
        wiring.loaded.runner,
        network,
        bus,
        wiring.directory,
        clock,
        ThreadExecutor(),
        wiring.options,
        logger=logger,
        registry=registry,
        on_drained=lambda: signal.raise_signal(signal.SIGTERM),
    )
    metrics = await serve_metrics_http(registry, settings.metrics_address)
    await service.start()
    return Assembly(service, (metrics, network, bus))


def run(role: Role, env: Mapping[str, str]) -> int:
    """The exit code."""
    prefix = f"BANYAN_{role.value.upper()}_"
    try:
        settings = read_settings(Settings, prefix, env)
        wiring = wire(settings, prefix)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger(role.value, settings.id)
    return run_service(
        lambda: start(role, settings, wiring, logger), grace_s=settings.grace_s, logger=logger
    )


def run_worker(role: Role) -> None:
    """The whole of a worker service's `main`. Does not return."""
    sys.exit(run(role, os.environ))
