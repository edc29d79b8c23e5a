"""Reads the settings, builds the real adapters, runs the gateway."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path

from banyan_core.journey_limits import JourneyLimits
from banyan_core.model_spec import KvDtype, Quantize
from banyan_core.queue import QueueLimits
from banyan_core.types import NS_PER_S, ModelCard
from banyan_gateway.api import ApiOptions, ApiTools, build_app
from banyan_gateway.auth import KeyRing, check_exposure, read_keys
from banyan_gateway.gateway import Gateway, GatewayOptions
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.http_protocol import raise_file_limit
from banyan_gateway.http_server import HttpServer
from banyan_gateway.model_formats import FROM_TEMPLATE, ModelFormats, model_formats
from banyan_gateway.reply import ReplyOptions
from banyan_gateway.served_models import ServedModels
from banyan_runtime.buses import BusSettings, open_bus
from banyan_runtime.directories import DirectorySetting
from banyan_runtime.offload import ThreadOffload
from banyan_runtime.service_main import Kit, run_main
from banyan_runtime.settings import (
    Address,
    Positive,
    PositiveSeconds,
    Seconds,
    SettingsError,
    secret,
    shared,
)
from banyan_text.card import echo_card, read_card
from banyan_text.generation_defaults import GenerationDefaults, read_generation_defaults
from banyan_text.hf_tokenizer import HfTokenizer
from banyan_text.model_folder import ModelFolderError
from banyan_text.tokenizer import ByteTokenizer, Tokenizer

PREFIX = "BANYAN_GATEWAY_"
GRAMMAR_THREADS = 4
"""They mostly wait, for one bad grammar at a time; those with a known one go past."""
THREAD_SWITCH_S = 0.001
"""How long a thread that tokenises may hold up the event loop; Python's own 5 ms are felt."""


class RunnerKind(StrEnum):
    TORCH = "torch"
    ECHO = "echo"


class Numerics(StrEnum):
    FAST = "fast"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(BusSettings):
    """Runner, model, block size, numerics, `quantize` and `kv_dtype` must be those of the workers:
    they make the card.

    `tool_format` and `reasoning_format` are how the model writes them: auto (as its chat template
    tells), none, or a name. `adapters` is a folder of LoRA adapters, a copy of what workers have.
    `mesh_secret` is the same for all gateways of a mesh, and kept: KV is shared under it.
    `max_waiting` requests wait, and the last of them is not expected to wait longer than
    `max_wait_s`; `queue_timeout_s` is their patience when nothing is served at all.
    `default_deadline_s` 0 is none. `metrics_address` serves /metrics without a key.
    """

    directory: DirectorySetting = shared("BANYAN_DIRECTORY")
    mesh_secret: str = secret("BANYAN_MESH_SECRET", "")
    allow_open: bool = shared("BANYAN_ALLOW_OPEN", False)
    model: Path | None = None
    model_name: str | None = None
    runner: RunnerKind = RunnerKind.TORCH
    numerics: Numerics = Numerics.FAST
    quantize: Quantize | None = None
    kv_dtype: KvDtype | None = None
    tool_format: str = FROM_TEMPLATE
    reasoning_format: str = FROM_TEMPLATE
    adapters: Path | None = shared("BANYAN_ADAPTERS", default=None)
    block_size: Positive = 16
    key_file: Path | None = None
    metrics_address: Address | None = None
    max_open_requests: Positive = 2500
    max_waiting: Positive = 1000
    max_wait_s: PositiveSeconds = 0.5
    queue_timeout_s: PositiveSeconds = 30.0
    body_bytes_max: Positive = 8 * 1024 * 1024
    keep_alive_s: PositiveSeconds = 10.0
    write_timeout_s: PositiveSeconds = 30.0
    default_deadline_s: Seconds = 0.0
    text_threads: Positive = 2
    grace_s: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the settings mean, checked before anything starts."""

    keys: KeyRing
    tokenizer: Tokenizer
    card: ModelCard
    formats: ModelFormats


def wire(settings: Settings) -> Wiring:
    """Raises SettingsError."""
    keys = KeyRing() if settings.key_file is None else read_keys(settings.key_file)
    check_exposure(settings.address, keys, settings.allow_open)
    if not keys.is_open and not settings.mesh_secret:
        raise SettingsError(
            "BANYAN_MESH_SECRET is not set: tenants need one, 32 random characters."
        )
    if settings.adapters is not None and not settings.adapters.is_dir():
        given = f"BANYAN_ADAPTERS={settings.adapters}"
        raise SettingsError(f"{given}: expected a folder of LoRA adapters.")
    tokenizer, card, defaults = _model(settings)
    formats = model_formats(
        tokenizer.template_source, PREFIX, settings.tool_format, settings.reasoning_format
    )
    return Wiring(keys, tokenizer, card, replace(formats, defaults=defaults))


def _model(settings: Settings) -> tuple[Tokenizer, ModelCard, GenerationDefaults]:
    size, numerics = settings.block_size, settings.numerics.value
    if settings.runner is RunnerKind.ECHO:
        card = echo_card(size, numerics, settings.model_name or "echo")
        return ByteTokenizer(), card, GenerationDefaults()
    if settings.model is None:
        raise SettingsError(f"{PREFIX}MODEL is not set: expected a model folder.")
    try:
        card = read_card(
            settings.model,
            size,
            numerics,
            settings.model_name,
            quantize=settings.quantize,
            kv=settings.kv_dtype,
        )
        return HfTokenizer(settings.model), card, read_generation_defaults(settings.model)
    except ModelFolderError as error:
        raise SettingsError(f"{PREFIX}MODEL={settings.model}: {error}") from None


async def start(settings: Settings, wiring: Wiring, kit: Kit) -> HttpServer:
    """Raises OSError when an address cannot be had."""
    raise_file_limit()
    sys.setswitchinterval(THREAD_SWITCH_S)
    if settings.metrics_address is not None:
        await kit.serve_metrics(settings.metrics_address)
    offload = kit.keep(ThreadOffload(settings.text_threads))
    gateway = Gateway(
        settings.id,
        kit.clock.unix_ns(),
        wiring.card,
        wiring.tokenizer,
        kit.network,
        settings.directory,
        kit.keep(open_bus(settings, kit.logger)),
        kit.clock,
        offload,
        kit.logger,
        GatewayOptions(
            settings.mesh_secret.encode(), settings.max_open_requests, _limits(settings)
        ),
        kit.recorder,
        kit.tracing,
    )
    tools = ApiTools(
        clock=kit.clock,
        offload=offload,
        grammar_offload=kit.keep(ThreadOffload(GRAMMAR_THREADS)),
        trials=kit.keep(GrammarTrials(wiring.tokenizer, wiring.card.end_token_ids)),
        draw=lambda: secrets.randbits(63),
        logger=kit.logger,
        registry=kit.registry,
    )
    models = kit.keep(ServedModels(wiring.card, kit.clock.unix_ns() // NS_PER_S))
    if settings.adapters is not None:
        await models.watch(settings.adapters, offload, kit.logger)
    options = _api_options(settings)
    app = build_app(
        gateway,
        wiring.tokenizer,
        wiring.card,
        models,
        wiring.keys,
        tools,
        options,
        wiring.formats,
    )
    server = HttpServer(app, settings.address, gateway)
    await server.start()
    kit.logger.info("serving", extra={"address": server.address, "model": wiring.card.name})
    return server


def _limits(settings: Settings) -> JourneyLimits:
    return JourneyLimits(
        queue_timeout_ns=round(settings.queue_timeout_s * NS_PER_S),
        queue=QueueLimits(
            max_waiting=settings.max_waiting, max_wait_ns=round(settings.max_wait_s * NS_PER_S)
        ),
    )


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
    return run_main("gateway", Settings, env, wire, start)


def main() -> None:
    sys.exit(run(os.environ))
