"""Reads the settings, builds the real adapters, runs the gateway."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry

from banyan_core.types import NS_PER_S, ModelCard
from banyan_gateway.api import ApiOptions, ApiTools, build_app
from banyan_gateway.auth import KeyRing, check_exposure, read_keys
from banyan_gateway.gateway import Gateway, GatewayOptions
from banyan_gateway.http_server import HttpServer
from banyan_gateway.reply import ReplyOptions
from banyan_runtime.clock import SystemClock
from banyan_runtime.directories import parse_directory
from banyan_runtime.directory import Directory
from banyan_runtime.grpc_network import ChannelSecurity, GrpcNetwork
from banyan_runtime.lifespan import EXIT_NOT_STARTED, Assembly, Closable, run_service
from banyan_runtime.metrics_http import serve_metrics_http
from banyan_runtime.offload import ThreadOffload
from banyan_runtime.recorder import FileRecorder
from banyan_runtime.settings import SettingsError, read_settings, secret, shared
from banyan_runtime.telemetry import json_logger
from banyan_runtime.valkey_bus import ValkeyBus
from banyan_text.card import echo_card, read_card
from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.model_folder import ModelFolderError
from banyan_text.tokenizer import ByteTokenizer, Tokenizer

PREFIX = "BANYAN_GATEWAY_"


class RunnerKind(StrEnum):
    TORCH = "torch"
    ECHO = "echo"


class Numerics(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True)
class Settings:
    """Runner, model, block size and numerics must be those of the workers: they make the card.

    `mesh_secret` is the same for all gateways of a mesh, and kept: KV is shared under it.
    `default_deadline_s` 0 is none. `metrics_address` serves /metrics without a key.
    """

    id: str
    address: str
    directory: str = shared("BANYAN_DIRECTORY")
    bus_url: str = shared("BANYAN_BUS_URL")
    channels: str = shared("BANYAN_CHANNELS", default="plain")
    mesh_secret: str = secret("BANYAN_MESH_SECRET", "")
    allow_open: bool = shared("BANYAN_ALLOW_OPEN", False)
    model: Path | None = None
    model_name: str | None = None
    runner: RunnerKind = RunnerKind.TORCH
    numerics: Numerics = Numerics.FAST
    block_size: int = 16
    key_file: Path | None = None
    metrics_address: str | None = None
    max_open_requests: int = 1000
    body_bytes_max: int = 8 * 1024 * 1024
    keep_alive_s: float = 10.0
    write_timeout_s: float = 30.0
    default_deadline_s: float = 0.0
    text_threads: int = 2
    record: Path | None = None
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    directory: Directory
    keys: KeyRing
    tokenizer: Tokenizer
    card: ModelCard


class _Recording:
    """Ends the record after the service, so that its last decisions are in it."""

    def __init__(self, recorder: FileRecorder) -> None:
        self._recorder = recorder

    async def close(self) -> None:
        self._recorder.close()


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    host, _, port = settings.address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        expected = "expected HOST:PORT, port 0 to 65535"
        raise SettingsError(f"{PREFIX}ADDRESS={settings.address}: {expected}.")
    _check_bounds(settings)
    keys = KeyRing() if settings.key_file is None else read_keys(settings.key_file)
    check_exposure(host, keys, settings.allow_open)
    if not keys.is_open and not settings.mesh_secret:
        raise SettingsError(
            "BANYAN_MESH_SECRET is not set: tenants need one, 32 random characters."
        )
    try:
        directory = parse_directory(settings.directory)
    except ValueError as error:
        raise SettingsError(f"BANYAN_DIRECTORY: {error}.") from None
    tokenizer, card = _model(settings)
    return Wiring(directory, keys, tokenizer, card)


def _check_bounds(settings: Settings) -> None:
    positive = ("block_size", "max_open_requests", "body_bytes_max", "text_threads")
    for name in (*positive, "keep_alive_s", "write_timeout_s"):
        if getattr(settings, name) <= 0:
            value = getattr(settings, name)
            raise SettingsError(f"{PREFIX}{name.upper()}={value}: expected more than 0.")
    for name in ("default_deadline_s", "grace_s"):
        if getattr(settings, name) < 0:
            value = getattr(settings, name)
            raise SettingsError(f"{PREFIX}{name.upper()}={value}: expected 0 or more.")


def _model(settings: Settings) -> tuple[Tokenizer, ModelCard]:
    size, numerics = settings.block_size, settings.numerics.value
    if settings.runner is RunnerKind.ECHO:
        return ByteTokenizer(), echo_card(size, numerics, settings.model_name or "echo")
    if settings.model is None:
        raise SettingsError(f"{PREFIX}MODEL is not set: expected a model folder.")
    try:
        card = read_card(settings.model, size, numerics, settings.model_name)
        return HfTokenizer(settings.model), card
    except ModelFolderError as error:
        raise SettingsError(f"{PREFIX}MODEL: {error}") from None


async def start(settings: Settings, wiring: Wiring, logger: logging.Logger) -> Assembly:
    """Raises OSError when an address is taken or the record cannot be written."""
    clock, registry = SystemClock(), CollectorRegistry()
    network = GrpcNetwork(ChannelSecurity.parse(settings.channels))
    bus = ValkeyBus(settings.bus_url)
    offload = ThreadOffload(settings.text_threads)
    recorder = None if settings.record is None else FileRecorder(settings.record)
    gateway = Gateway(
        settings.id,
        clock.unix_ns(),
        wiring.card,
        wiring.tokenizer,
        network,
        wiring.directory,
        bus,
        clock,
        offload,
        logger,
        GatewayOptions(settings.mesh_secret.encode(), settings.max_open_requests),
        recorder,
    )
    tools = ApiTools(clock, offload, lambda: secrets.randbits(63), logger, registry)
    app = build_app(
        gateway, wiring.tokenizer, wiring.card, wiring.keys, tools, _api_options(settings)
    )
    server = HttpServer(app, settings.address, gateway)
    adapters: list[Closable] = [network, bus, offload]
    if settings.metrics_address is not None:
        adapters.insert(0, await serve_metrics_http(registry, settings.metrics_address))
    if recorder is not None:
        adapters.append(_Recording(recorder))
    await server.start()
    logger.info("serving", extra={"address": server.address, "model": wiring.card.name})
    return Assembly(server, adapters)


def _api_options(settings: Settings) -> ApiOptions:
    deadline_ns = round(settings.default_deadline_s * NS_PER_S)
    return ApiOptions(
        version=version("banyan-gateway"),
        reply=ReplyOptions(settings.keep_alive_s, settings.write_timeout_s),
        body_bytes_max=settings.body_bytes_max,
        default_deadline_ns=deadline_ns or None,
    )


def run(env: Mapping[str, str]) -> int:
    """The exit code."""
    try:
        settings = read_settings(Settings, PREFIX, env)
        wiring = wire(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_STARTED
    logger = json_logger("gateway", settings.id)
    return run_service(
        lambda: start(settings, wiring, logger), grace_s=settings.grace_s, logger=logger
    )


def main() -> None:
    sys.exit(run(os.environ))
